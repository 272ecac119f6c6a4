"""A server that one gateway installed: the others reach it there, and none takes away what another has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from servers.registries import Registries, server_source
from support import GatewayProcess, running_gateway, wait_for
from support.engines import Redis

SETTINGS = """
discovery:
  catalog: {{registries: ["{url}"], snapshot: false}}
  install: {{allow: [{{publisher: org.trusted}}], start_timeout_seconds: 20}}
"""


@pytest.fixture(scope="module")
def two(new_database: Callable[[], str], redis: Redis) -> Iterator[list[GatewayProcess]]:
    url = new_database()
    with Registries() as registries, contextlib.ExitStack() as stack:
        package = registries.add_wheel("shared-server", server_source("shared"))
        registries.publish("org.trusted/shared", packages=[package])
        found = []
        for _ in range(2):
            process = stack.enter_context(running_gateway(settings=SETTINGS.format(url=registries.url), start=False))
            process.environment = {
                **registries.environment,
                "TOOLSCORE_STORAGE__DATABASE_URL": url,
                "TOOLSCORE_STORAGE__REDIS_URL": redis.url,
            }
            process.start()
            found.append(process)
        yield found


def install(process: GatewayProcess) -> dict[str, Any]:
    body = {"name": "shared", "approve": True}
    return dict(process.http.post("/api/v1/catalog/install", json=body, timeout=120).json())


def works(process: GatewayProcess) -> bool:
    answer = process.execute("shared__look")
    return bool(answer["success"] and answer["data"]["content"][0]["text"] == "fine")


@pytest.mark.long
def test_a_server_that_one_installed_is_there_for_all_and_stays_until_somebody_removes_it(
    two: list[GatewayProcess],
) -> None:
    one, other = two
    assert install(one)["success"]
    for process in two:
        wait_for(lambda process=process: works(process), 120)  # type: ignore[misc]
    home = one.folder / "data" / "servers" / "shared"
    (home / "home" / "kept").write_text("precious")
    assert not (other.folder / "data" / "servers" / "shared").exists(), "the other reaches it over one hop"

    other.stop()
    other.start()
    wait_for(lambda: works(other), 120)
    away = one.folder / "data-of-another-machine"
    (one.folder / "data").rename(away)  # as if it were on another machine
    one.stop()
    wait_for(lambda: other.server("shared")["state"] in ("failed", "down"), 60)
    answer = other.execute("shared__look", timeout_seconds=5)
    assert answer["error"]["code"] == "upstream_unavailable", answer
    away.rename(one.folder / "data")
    one.start()
    for process in two:
        wait_for(lambda process=process: works(process), 120)  # type: ignore[misc]
    assert (home / "home" / "kept").read_text() == "precious"

    assert install(other)["success"], "it is there already"
    assert not (other.folder / "data" / "servers" / "shared").exists()
    assert other.http.delete("/api/v1/catalog/installed/shared").is_success
    for process in two:
        wait_for(lambda process=process: process.http.get("/api/v1/servers/shared").status_code == 404, 60)  # type: ignore[misc]
    wait_for(lambda: not home.exists(), 60, "for the gateway that has the folder to remove it")
