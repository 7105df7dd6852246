"""Runs, SAEs, features and scores of studies in one database: SQLite embedded, PostgreSQL where a URL is given."""
