"""Engines that operators add; a new database has their table from the first migration already."""

from alembic import op

from headframe.store.tables import metadata

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    metadata.create_all(op.get_bind(), tables=[metadata.tables["engine"]])


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
