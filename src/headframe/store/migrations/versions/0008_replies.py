"""Stored answers are forgotten by their time; a new database has the index from the first migration already."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_index("reply_by_time", "reply", ["at_ms"], if_not_exists=True)


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
