"""Fixtures: three gateways on a real Postgres and a real Redis, behind a real haproxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support import GatewayProcess, odd
from support.engines import Redis, gateways, haproxy, new_database, postgres_url, redis

__all__ = ["new_database", "postgres_url", "redis"]

SETTINGS = "servers: {leave_seconds: 1.5, grace_seconds: 10}\n"


@pytest.fixture(scope="module")
def replicas(new_database: Callable[[], str], redis: Redis) -> Iterator[list[GatewayProcess]]:
    """Three, started at once."""
    servers = {"good": odd("echo")}
    with gateways(new_database(), redis.url, servers=servers, settings=SETTINGS, journal=True, python=True) as found:
        yield found


@pytest.fixture(scope="module")
def balancer(replicas: list[GatewayProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Before them, each request to the next."""
    with haproxy(tmp_path_factory.mktemp("haproxy"), [process.http_port for process in replicas]) as url:
        yield url
