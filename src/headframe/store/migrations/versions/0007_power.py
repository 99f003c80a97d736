"""Prices, signals, coins, fillers, mining machines and what dispatch wants; a new database has their tables from the first migration already."""

from alembic import op

from headframe.store.tables import forbid, metadata

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    names = ("market_day", "signal", "coin", "filler", "asic", "posture", "node_yield")
    db = op.get_bind()
    metadata.create_all(db, tables=[metadata.tables[name] for name in names])
    forbid(db, "node_yield")


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
