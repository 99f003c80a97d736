"""Endpoints, gateways, allowances, and what was served; a new database has their tables from the first migration already."""

from alembic import op

from headframe.store.tables import forbid, metadata

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    db = op.get_bind()
    metadata.create_all(db, tables=[metadata.tables[name] for name in ("endpoint", "gateway", "allowance", "served")])
    forbid(db, "served")


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
