"""The first schema: nouns, events, guards; entries and usage that the database itself refuses to change."""

import sqlalchemy as sa
from alembic import op

from headframe.store.tables import control, forbid, metadata

revision = "0001"
down_revision = None

_APPEND_ONLY = ("entry", "usage", "event")


def upgrade() -> None:
    db = op.get_bind()
    metadata.create_all(db)
    db.execute(sa.insert(control).values(id=1, version=0, holder="", epoch=0, beat=0))
    if db.dialect.name == "postgresql":
        db.execute(sa.text(
            "CREATE FUNCTION headframe_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation'; END $$"
        ))  # fmt: skip
    for table in _APPEND_ONLY:
        forbid(db, table)


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
