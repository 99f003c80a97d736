"""Hours: what cards said, rolled up; a new database has their table from the first migration already."""

from alembic import op

from headframe.store.tables import metadata

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    metadata.create_all(op.get_bind(), tables=[metadata.tables["hour"]])


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
