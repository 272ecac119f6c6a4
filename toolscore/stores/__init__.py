"""Where state is kept; the only place with database drivers."""

from toolscore.stores.database import Database, open_database

__all__ = ["Database", "open_database"]
