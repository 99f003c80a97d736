"""The tables: one per noun, each a few columns to find rows by and the row itself; and the tables that guard."""

import sqlalchemy as sa

from headframe.model.event import HISTORY, ROW_TYPES

metadata = sa.MetaData()
OWNED = sa.literal_column("parent_id <> ''", sa.Boolean)
"""An index with this condition serves only those who ask with it."""


def _noun(name: str, *extra: sa.schema.SchemaItem) -> sa.Table:
    return sa.Table(
        name, metadata,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("parent_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        *extra,
        sa.Index(f"{name}_by_project", "project_id", "at_ms", "id"),
        sa.Index(f"{name}_by_parent", "parent_id", "at_ms", "id", sqlite_where=OWNED, postgresql_where=OWNED),
        sa.Index(f"{name}_by_time", "at_ms", "id"),
        sa.Index(f"{name}_live", "live", sqlite_where=sa.text("live"), postgresql_where=sa.text("live")),
    )  # fmt: skip


def _extra(name: str) -> tuple[sa.schema.SchemaItem, ...]:
    if name == "served":
        return (sa.Index("served_by_name", "name", "at_ms", "id"),)
    if name != "project":
        return ()
    return (
        sa.Column("credit_nano", sa.BigInteger, sa.CheckConstraint("credit_nano >= 0", name="credit_not_negative"), nullable=False),
        sa.Column("held_nano", sa.BigInteger, sa.CheckConstraint("held_nano >= 0", name="held_not_negative"), nullable=False),
    )


NOUNS: dict[type, sa.Table] = {kind: _noun(str(kind.__struct_config__.tag), *_extra(str(kind.__struct_config__.tag))) for kind in ROW_TYPES}
APPEND_ONLY = tuple(NOUNS[kind] for kind in HISTORY)
"""The database itself refuses to update or delete these: see the first migration."""

event = sa.Table(
    "event", metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("event_by_project", "project_id", "seq"),
    sa.Index("event_by_subject", "subject", "seq"),
)  # fmt: skip
gpu_held = sa.Table(
    "gpu_held", metadata,
    sa.Column("gpu_id", sa.Text, primary_key=True),
    sa.Column("milli", sa.Integer, sa.CheckConstraint("milli BETWEEN 0 AND 1000", name="gpu_not_held_twice"), nullable=False),
)  # fmt: skip
control = sa.Table(
    "control", metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("beat", sa.BigInteger, nullable=False),
)  # fmt: skip
hour = sa.Table(
    "hour", metadata,
    sa.Column("node_id", sa.Text, primary_key=True),
    sa.Column("hour_ms", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("hour_by_time", "hour_ms"),
)  # fmt: skip
reply = sa.Table(
    "reply", metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("request_hash", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Index("reply_by_time", "at_ms"),
)  # fmt: skip


def forbid(db: sa.Connection, table: str) -> None:
    """Have the database refuse to change or delete rows of `table`."""
    if db.dialect.name == "postgresql":
        db.execute(sa.text(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "EXECUTE FUNCTION headframe_append_only()"
        ))  # fmt: skip
        return
    for verb in ("UPDATE", "DELETE"):
        db.execute(sa.text(
            f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        ))  # fmt: skip
