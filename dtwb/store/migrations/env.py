"""Run by alembic: brings the store that `Store.open` has connected to up to date, in its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
