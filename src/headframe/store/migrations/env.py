"""Alembic's entry: runs on the connection that `store.open` hands over."""

from alembic import context

from headframe.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
