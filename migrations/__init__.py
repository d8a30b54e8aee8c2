"""Alembic migrations of the database, forward and back."""
