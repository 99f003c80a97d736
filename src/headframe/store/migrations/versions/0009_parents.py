"""Rows that belong to nothing are in no order by what they belong to; a new database has such indexes from the first migration already."""

from alembic import op

from headframe.store.tables import NOUNS

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    db = op.get_bind()
    for index in [index for table in NOUNS.values() for index in table.indexes if index.name == f"{table.name}_by_parent"]:
        index.drop(db)
        index.create(db)


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
