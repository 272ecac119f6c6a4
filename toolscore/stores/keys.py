"""Where the keys come from by which gateways seal what carries state: a setting, the database, or a file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from toolscore.core.errors import SettingsError
from toolscore.core.seal import KeyRing, new_key
from toolscore.stores.database import Database

__all__ = ["open_ring"]

log = structlog.get_logger(__name__)

FILE = "seal.key"


async def open_ring(given: str | None, database: Database, folder: Path) -> KeyRing:
    """The keys of this gateway, and of those that share its database.

    Args:
        given: of the settings, with references replaced; `None`: one is drawn, and kept in the data folder or, where
            several gateways share a database, in that.

    Raises:
        SettingsError: what was given are no keys.
        StoreError: the database cannot be asked.
    """
    if given:
        try:
            return KeyRing.read(given)
        except ValueError as exc:
            raise SettingsError([f"storage.seal_keys: {exc}"]) from exc
    if database.shared:
        return KeyRing.read(await database.seal_key(new_key()))
    return await asyncio.to_thread(_of_file, folder / FILE)


def _of_file(path: Path) -> KeyRing:
    """The key of a data folder; drawn at the first start."""
    try:
        return KeyRing.read(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as exc:
        log.warning("the key of session ids cannot be read: those given before are not known any more", path=str(path),
                    error=str(exc))  # fmt: skip
    drawn = new_key()
    try:
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(drawn + "\n")
    except OSError as exc:
        log.warning("the key of session ids cannot be kept: after a restart, clients open new sessions",
                    path=str(path), error=str(exc))  # fmt: skip
    return KeyRing.read(drawn)
