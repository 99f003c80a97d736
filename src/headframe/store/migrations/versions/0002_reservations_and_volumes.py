"""Reservations and volumes: two more nouns; a new database has their tables from the first migration already."""

from alembic import op

from headframe.store.tables import metadata

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    metadata.create_all(op.get_bind(), tables=[metadata.tables[name] for name in ("reservation", "volume")])


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
