"""Fixtures: three gateways on a real Postgres and a real Redis, behind a real haproxy."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import GatewayProcess, odd, running_gateway, wait_for
from support.engines import Redis, haproxy, new_database, postgres_url

__all__ = ["new_database", "postgres_url"]

SETTINGS = "servers: {leave_seconds: 1.5, grace_seconds: 10}\n"


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    with tempfile.TemporaryDirectory(prefix="toolscore-redis-") as folder:
        server = Redis(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module")
def replicas(new_database: Callable[[], str], redis: Redis) -> Iterator[list[GatewayProcess]]:
    """Three, started at once."""
    url = new_database()
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(3):
            process = stack.enter_context(
                running_gateway({"good": odd("echo")}, settings=SETTINGS, start=False, journal=True, python=True)
            )
            process.environment = {
                "TOOLSCORE_STORAGE__DATABASE_URL": url,
                "TOOLSCORE_STORAGE__REDIS_URL": redis.url,
            }
            process.start(ready=False)
            found.append(process)
        for process in found:
            wait_for(process.is_ready, 60)
            process.wait_for_state("good", "up")
        yield found


@pytest.fixture(scope="module")
def balancer(replicas: list[GatewayProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Before them, each request to the next."""
    with haproxy(tmp_path_factory.mktemp("haproxy"), [process.http_port for process in replicas]) as url:
        yield url
