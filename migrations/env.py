"""Alembic's entry: runs the history on the connection it is handed."""

from alembic import context

from cost import tables as cost_tables
from governance import tables as governance_tables
from kernel.db import Base

# Importing a folder's tables is what puts them into the metadata.
assert cost_tables.EntryRow.metadata is governance_tables.AuditRow.metadata is Base.metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
