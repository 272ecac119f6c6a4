"""Where state is kept.

A module of its own: the recorder, which reads no settings, imports the rest of this room and spares pydantic's memory.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from toolscore.core.rules import Rules

__all__ = ["StoreRules"]


class StoreRules(Rules):
    """Where state is kept."""

    needs_restart = True

    data_dir: str = Field(
        "data",
        description="of the SQLite file, of installed servers and of Python packages; without a settings folder beside "
        "it, ~/.local/state/toolscore",
    )
    database_url: str | None = Field(
        None,
        description="postgresql+asyncpg://user:password@host/name instead (pip install toolscore[postgres])",
    )
    migrate: bool = Field(
        True,
        description="at start, bring the database's schema up to this release; false: `toolscore migrate` does it",
    )
    redis_url: str | None = Field(
        None, pattern=r"^(rediss?|unix)://", description="redis://host:6379/0: replicas share budgets and results"
    )

    seal_keys: str | None = Field(
        None,
        description="keys of session ids and of what gateways tell one another: 32 bytes each in base64, with commas "
        "between them; the first seals, all open. `${env:…}` and `${file:…}` stand for what they name. Without it one "
        "is drawn, and kept in the data folder or the database",
    )

    @property
    def folder(self) -> Path:
        """The data folder; absolute."""
        return Path(self.data_dir).absolute()

    @property
    def url(self) -> str:
        """The database, in SQLAlchemy's form: a file in the data folder unless another is given."""
        file = str(self.folder / "toolscore.db").replace("%", "%25").replace("?", "%3F")  # a URL's own signs
        return self.database_url or f"sqlite+aiosqlite:///{file}"
