"""Where state is kept; the only place with database drivers."""

from toolscore.stores.behind import WriteBehind, with_patience
from toolscore.stores.database import Database, open_database
from toolscore.stores.redis import SharedStore, open_shared

__all__ = ["Database", "SharedStore", "WriteBehind", "open_database", "open_shared", "with_patience"]
