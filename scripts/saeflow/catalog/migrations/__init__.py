"""Migrations of the catalog, as alembic finds them."""
