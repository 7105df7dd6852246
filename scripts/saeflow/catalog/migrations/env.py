"""What alembic runs: migrations on the connection that `saeflow.catalog.database.migrate` opened."""

from alembic import context

from saeflow.catalog.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
