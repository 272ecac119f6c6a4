"""Fixtures: a real Postgres."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from support import debian_package, free_port, wait_for


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A Postgres server of our own on loopback."""
    programs = debian_package("postgresql", "/usr/lib/postgresql/*/bin/initdb").parent
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="toolscore-postgres-"))
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    port = free_port()
    try:
        initdb = [programs / "initdb", "-D", folder / "data", "-U", "toolscore", "--auth=trust", "--no-sync"]
        subprocess.run(initdb, user=user, check=True, capture_output=True, cwd=folder)
        server = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"],
            user=user, stderr=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        wait_for(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, 30, "for Postgres")
        try:
            yield f"postgresql+asyncpg://toolscore@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def new_database(postgres_url: str) -> Callable[[], str]:
    """Makes an empty database there; returns its URL."""

    def make() -> str:
        name = f"test_{uuid.uuid4().hex}"

        async def create() -> None:
            engine = create_async_engine(postgres_url, isolation_level="AUTOCOMMIT")
            async with engine.connect() as connection:
                await connection.exec_driver_sql(f"CREATE DATABASE {name}")
            await engine.dispose()

        asyncio.run(create())
        return postgres_url.replace("/postgres", f"/{name}")

    return make
