"""HTTP servers as some are in the wild."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from mcp import Client
from support import SCRIPTS, GatewayProcess, free_port, running_gateway, wait_for

KINDS = (
    "plain",
    "sse",
    "cut",
    "endless",
    "html",
    "forbidden",
    "busy",
    "hangs",
    "changing",
    "packed",
    "moved",
    "dribble",
    "forgetful",
    "twice",
)


@pytest.fixture(scope="module")
def wild() -> Iterator[GatewayProcess]:
    port = free_port()
    script = SCRIPTS / "odd_http.py"
    child = subprocess.Popen([sys.executable, str(script), str(port)])
    try:
        with running_gateway({kind: {"url": f"http://127.0.0.1:{port}/{kind}"} for kind in KINDS}) as process:
            for kind in KINDS:
                process.wait_for_state(kind, "up")
            yield process
    finally:
        child.kill()
        child.wait()


def test_an_answer_in_a_stream_is_an_answer(wild: GatewayProcess) -> None:
    assert wild.text("sse__go") == "done"
    assert wild.text("plain__go") == "done"


def test_an_address_that_moved_on_its_host_is_followed_and_another_host_is_not(wild: GatewayProcess) -> None:
    assert wild.text("moved__go") == "done"
    url = wild.server("moved")["url"].replace("moved", "elsewhere")
    wild.http.post("/api/v1/servers", json={"server_id": "elsewhere", "url": url})
    server = wild.wait_for_state("elsewhere", "down")
    assert "another host" in server["last_error"]
    wild.http.delete("/api/v1/servers/elsewhere")


def test_a_session_that_the_server_forgot_is_renewed_for_all_calls_at_once(wild: GatewayProcess) -> None:
    for _ in range(3):
        assert wild.text("forgetful__go", {"forget": True}) == "done"
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda _: wild.execute("forgetful__go"), range(10)))
        assert [answer["success"] for answer in answers] == [True] * 10, answers


def test_progress_in_a_stream_reaches_the_client(wild: GatewayProcess) -> None:
    async def run() -> list[tuple[float, float | None]]:
        seen = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            seen.append((done, total))

        async with Client(f"{wild.url}/mcp", mode="legacy") as client:
            await client.call_tool("sse__go", {}, progress_callback=progress)
        return seen

    assert asyncio.run(run()) == [(1, 2)]


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        ("cut", "outcome_unknown", "went away during the call"),
        ("endless", "upstream_protocol_error", "bound of 16,777,216"),
        ("dribble", "upstream_protocol_error", "an event over the bound"),
        ("packed", "upstream_protocol_error", "bound of 16,777,216"),
        ("html", "upstream_protocol_error", "HTTP 500"),
        ("forbidden", "upstream_unavailable", "check its `headers`"),
        ("busy", "upstream_unavailable", "is busy"),
    ],
)
@pytest.mark.long
def test_what_is_no_answer_has_its_own_error(wild: GatewayProcess, kind: str, code: str, said: str) -> None:
    answer = wild.execute(f"{kind}__go", timeout_seconds=110)
    assert answer["error"]["code"] == code
    assert said in answer["error"]["message"]
    assert wild.text("plain__go") == "done"


def test_a_server_that_hangs_costs_its_caller_the_timeout_and_others_nothing(wild: GatewayProcess) -> None:
    answer = wild.execute("hangs__go", timeout_seconds=0.3)
    assert answer["error"]["code"] == "outcome_unknown"
    assert wild.text("plain__go") == "done"


def test_a_change_told_on_the_servers_stream_reaches_the_library(wild: GatewayProcess) -> None:
    assert wild.http.get("/api/v1/tools/changing__later").status_code in (404, 200)
    wait_for(
        lambda: wild.text("changing__go") and wild.http.get("/api/v1/tools/changing__later").status_code == 200,
        message="for the new tool",
    )


def test_a_second_answer_is_nobodys(wild: GatewayProcess) -> None:
    for number in range(20):
        answer = wild.execute("twice__go", {"who": number})
        if answer["success"]:
            assert answer["data"]["content"][0]["text"] == f"for {number}"
        else:
            assert answer["error"]["code"] in ("upstream_protocol_error", "outcome_unknown", "upstream_unavailable")


@pytest.mark.long
def test_values_behind_references_do_not_show_in_errors() -> None:
    secret = "s3cr3t-of-the-operator"
    servers = {
        "command": {"command": "no-such-${env:OPERATORS}"},
        "folder": {"command": "python", "cwd": "/nowhere/${env:OPERATORS}"},
        "socket": {"url": "ws://127.0.0.1:9/${env:OPERATORS}"},
        "http": {"url": "http://127.0.0.1:9/${env:OPERATORS}?key=${env:OPERATORS}"},
        "says": {
            "command": "python",
            "args": ["-c", "import sys; sys.exit('bad key ' + sys.argv[1])", "${env:OPERATORS}"],
        },
    }
    with running_gateway(servers, settings="servers: {max_start_failures: 1}", start=False) as process:
        process.environment = {"OPERATORS": secret}
        process.start()
        for server_id in servers:
            wait_for(lambda server_id=server_id: process.server(server_id)["last_error"])  # type: ignore[misc]
            shown = {**process.server(server_id), "stderr": None}
            assert secret not in str(shown), server_id
        assert secret not in str(process.events())
        assert secret not in process.http.get("/health").text
        assert "${env:OPERATORS}" in process.server("command")["last_error"]
