"""The way from each schema to the next, as Alembic runs it. `toolscore/stores/schema.py` says when."""
