"""`FeatureIndex` by itself: what servers offer is there again after a restart, as it was last."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from support import eventually

from toolscore.stores.database import open_database
from toolscore.tools.features import FeatureIndex


def rename(path: Path, name: str, to: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"alter table {name} rename to {to}")
    connection.close()


def test_lists_that_change_while_the_database_refuses_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "features.db"

    async def run() -> None:
        async with open_database(f"sqlite+aiosqlite:///{path}") as database:
            async with FeatureIndex(database) as features:
                rename(path, "features", "away")
                features.update("town", "prompts", [{"name": "first"}])
                await eventually(lambda: features.writes.error)  # it was refused once, and is tried again
                for number in range(200):
                    features.update("town", "prompts", [{"name": f"number {number}"}])
                features.update("village", "prompts", [{"name": "other"}])
                rename(path, "away", "features")
            assert (features.writes.error, features.writes.lost) == (None, 0)
            async with FeatureIndex(database) as features:
                assert features.entries("town", "prompts") == [{"name": "number 199"}]
                assert features.entries("village", "prompts") == [{"name": "other"}]

    asyncio.run(run())


def test_servers_whose_ids_look_alike_have_their_own_addresses(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            open_database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as database,
            FeatureIndex(database, 64) as features,
        ):
            assert features.note_link("first", "memo://x") == "memo://x"
            shown = [features.shown_uri(server_id, "memo://x") for server_id in ("my-db", "my_db", "My-db", "my.db")]
            assert len(set(shown)) == 4
            assert shown[0] == "toolscore+my-db+memo://x"

    asyncio.run(run())
