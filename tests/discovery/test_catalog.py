"""Catalogs: registries in the official format, copied whole, searched offline; and us as one of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers.registries import Registries
from support import GatewayProcess, bearer, odd, running_gateway, toolscore, wait_for, with_config

from toolscore.discovery import Entry

SERVERS = {
    "com.example/slack": "Post messages to Slack channels and read their history",
    "com.example/weather": "Weather forecasts and warnings for any city",
    "io.github.ada/postgres": "Run SQL queries on a PostgreSQL database",
    "io.github.bob/files": "Read and write files in a folder",
    "io.github.cid/maps": "Routes, places and distances on a map",
}


@pytest.fixture(scope="module")
def registry() -> Iterator[Registries]:
    with Registries() as registries:
        for name, about in SERVERS.items():
            registries.publish(name, "1.0.0", description=about)
            registries.publish(name, "1.2.0", description=about, packages=[
                {"registryType": "pypi", "identifier": name.replace("/", "-").replace(".", "-"), "version": "1.2.0",
                 "transport": {"type": "stdio"}, "environmentVariables": [
                     {"name": "API_KEY", "isSecret": True, "isRequired": True, "description": "of your account"}]}
            ], repository={"url": "https://example.com/x", "source": "other"})  # fmt: skip
        yield registries


def settings_of(registry: Registries, more: str = "") -> str:
    return f"discovery: {{catalog: {{registries: ['{registry.url}'], snapshot: false{more}}}}}"


def search(process: GatewayProcess, query: str, limit: int = 5) -> dict[str, Any]:
    return dict(process.get("/api/v1/catalog/search", q=query, limit=limit))


@pytest.fixture(scope="module")
def process(registry: Registries) -> Iterator[GatewayProcess]:
    with running_gateway({"alpha": odd("echo")}, settings=settings_of(registry)) as gateway:
        gateway.wait_for_state("alpha", "up")
        yield gateway


def test_a_registry_is_copied_whole_and_searched(process: GatewayProcess, registry: Registries) -> None:
    found = search(process, "tell my colleagues in the channel that the build is done, on slack")
    first = found["servers"][0]
    assert first["name"] == "com.example/slack"
    assert first["version"] == "1.2.0", "the latest"
    assert first["packages"][0] == {
        "registry": "pypi", "identifier": "com-example-slack", "version": "1.2.0", "transport": "stdio",
    }  # fmt: skip
    assert first["needs"] == [{"name": "API_KEY", "secret": True, "description": "of your account"}]
    assert "slack" in first["matched"]
    assert first["publisher_checked"]
    assert first["repository"] == "https://example.com/x"
    assert first["licence"] is None
    assert first["obstacle"] == "it needs API_KEY"
    source = found["sources"][0]
    assert (source["name"], source["servers"], source["error"]) == (registry.url, 5, None)
    assert source["age_seconds"] < 60
    pages = [path for path in registry.asked if path.startswith("/v0.1/servers?")]
    assert len(pages) >= 3, "two a page"


def test_it_works_offline_from_the_last_copy_and_says_how_old_that_is(registry: Registries) -> None:
    with running_gateway(settings=settings_of(registry, ", max_age_hours: 0.0001")) as gateway:
        assert search(gateway, "sql database")["servers"][0]["name"] == "io.github.ada/postgres"
        gateway.stop()  # the copy is written behind the answer
        registry.down = True
        try:
            gateway.start()
            time.sleep(0.5)  # now it is too old
            began = time.monotonic()
            found = search(gateway, "sql database")
            assert time.monotonic() - began < 2.5, "nobody waits for a registry that was copied before"
            assert found["servers"][0]["name"] == "io.github.ada/postgres"
            wait_for(lambda: "503" in (search(gateway, "sql")["sources"][0]["error"] or ""))
            assert search(gateway, "sql")["sources"][0]["age_seconds"] > 0.3
            said = toolscore("catalog", "search", "sql database", gateway=gateway)
            assert "could not be asked" in said.stderr
            refreshed = toolscore("catalog", "refresh", gateway=gateway)
            assert "503" in refreshed.stdout
        finally:
            registry.down = False


def test_a_registry_that_was_never_reached_costs_a_bounded_wait() -> None:
    settings = "discovery: {catalog: {registries: ['http://127.0.0.1:9'], snapshot: true}}"
    with running_gateway(settings=settings) as gateway:
        found = search(gateway, "what time is it in Tokyo", 3)
        assert found["servers"][0]["name"] == "io.github.modelcontextprotocol/time", "the snapshot that comes with us"
        states = {source["kind"]: source for source in found["sources"]}
        assert states["registry"]["error"]
        assert states["registry"]["age_seconds"] is None
        assert states["snapshot"]["servers"] > 500


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    server = {"name": "com.corp/payroll", "description": "Salaries and payslips", "version": "1.0.0"}
    file.write_text(json.dumps([server]))
    settings = f"discovery: {{catalog: {{registries: [], snapshot: false, file: '{file}'}}}}"
    with running_gateway(settings=settings) as gateway:
        found = search(gateway, "show me my payslip")["servers"]
        assert [one["name"] for one in found] == ["com.corp/payroll"]
        assert not found[0]["publisher_checked"]
        file.write_text("not json")
        gateway.stop()
        gateway.start()
        assert search(gateway, "payslip")["servers"] == []
        assert (
            "not json" in search(gateway, "payslip")["sources"][0]["error"]
            or search(gateway, "x")["sources"][0]["error"]
        )


@pytest.mark.parametrize(
    "page",
    [
        [], {}, {"servers": None}, {"servers": "x"}, {"servers": [None, 1, "x", []]},
        {"servers": [{"server": None}, {"server": {"name": 1}}, {"server": {"name": "no-slash"}}]},
        {"servers": [{"server": {"name": "a/b\n", "description": "x"}}]},
        {"servers": [{"server": {"name": "a/ok", "description": None, "packages": "x", "remotes": 3, "_meta": []},
                      "_meta": "x"}]},
        {"servers": [{"server": {"name": "a/ok", "description": {"a": 1}, "packages": [None, {}], "remotes": [None]}}]},
        {"servers": [{"server": {"name": "a/ok", "packages": [
            {"registryType": [], "identifier": {}, "version": 3, "transport": "stdio",
             "environmentVariables": {"x": 1}, "packageArguments": "x", "runtimeArguments": {"a": 1}}]}}]},
        {"servers": [{"server": {"name": "a/ok", "_meta": {"io.modelcontextprotocol.registry/publisher-provided": {
            "tags": 3, "categories": {"a": 1}, "tools": [None, {"name": None}, {"description": 3}]}}}}]},
        {"servers": [], "metadata": "x"},
        {"servers": 7},
        {"servers": [{"server": {"name": "a/ok", "description": "\ud800", "title": "ok"}}]},
        {"servers": [{"server": {"name": "a/ok", "title": float("nan"), "repository": "x", "remotes": [
            {"type": "streamable-http", "url": "https://[::1", "headers": 5}]}, "_meta": {"x": "\udfff"}}]},
        {"servers": [{"server": {"name": "a/ok", "description": "x"}}], "metadata": {"nextCursor": "again"}},
    ],
)  # fmt: skip
def test_a_registry_may_say_anything(page: Any, tmp_path: Path) -> None:
    """Nothing of it breaks the search, and what can be used of it is."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(page).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    import asyncio

    import aiohttp

    from toolscore.core.errors import ToolScoreError
    from toolscore.discovery import CatalogRules, InstallRules, MCPSearchTool, Offer, Wish
    from toolscore.discovery.install.plan import plan_for
    from toolscore.discovery.views import offer_fields
    from toolscore.embedding import LightEmbedder
    from toolscore.stores import open_database

    async def look() -> None:
        async with (
            open_database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as database,
            aiohttp.ClientSession() as http,
        ):
            async with MCPSearchTool(
                database, LightEmbedder(), http, CatalogRules(registries=(url,), snapshot=False)
            ) as catalog:
                found = await catalog.search("ok something")
                assert len(await catalog.states()) == 1
                for one in found:
                    try:
                        plan = plan_for(Wish(one.entry), InstallRules(), tmp_path)
                    except ToolScoreError:
                        plan = None
                    json.dumps(offer_fields(Offer(one, 0.5, plan, False, None)))
                await catalog.page()

    asyncio.run(look())
    server.shutdown()


def test_what_an_entry_needs() -> None:
    variables = [
        {"name": "KEY", "isRequired": True},
        {"name": "MODE", "isRequired": True, "default": "fast"},
        {"name": "X"},
    ]
    entry = Entry({"name": "a/b", "packages": [{"environmentVariables": variables}]}, {}, "file")
    assert [need["name"] for need in entry.needs()] == ["KEY"]


# We are a registry ourselves


def listed(process: GatewayProcess, **params: Any) -> tuple[list[str], str | None]:
    answer = process.http.get("/v0.1/servers", params=params)
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert page["metadata"]["count"] == len(page["servers"])
    return [one["server"]["name"] for one in page["servers"]], page["metadata"].get("nextCursor")


def test_the_registry_api_lists_pages_and_finds(process: GatewayProcess) -> None:
    search(process, "x")
    names: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = listed(process, limit=2, **({"cursor": cursor} if cursor else {}))
        names += page
        if cursor is None:
            break
    assert names == sorted(names)
    assert set(SERVERS) < set(names)
    assert "local.toolscore/alpha" in names
    assert listed(process, search="WEATHER")[0] == ["com.example/weather"]
    assert listed(process, version="latest", search="slack")[0] == ["com.example/slack"]
    assert "com.example/slack" not in listed(process, updated_since="2026-07-01T00:00:00Z")[0]
    assert process.http.get("/v0.1/servers", params={"limit": 0}).status_code in (400, 422)


def test_versions_and_scores(process: GatewayProcess) -> None:
    process.text("alpha__echo", {"text": "hi"})
    versions = process.http.get("/v0.1/servers/com.example%2Fslack/versions").json()
    assert [one["server"]["version"] for one in versions["servers"]] == ["1.2.0", "1.0.0"]
    exact = process.http.get("/v0.1/servers/com.example%2Fslack/versions/1.0.0").json()
    assert exact["server"]["version"] == "1.0.0"
    latest = process.http.get("/v0.1/servers/com.example%2Fslack/versions/latest").json()
    assert latest["server"]["version"] == "1.2.0"
    assert latest["_meta"]["io.modelcontextprotocol.registry/official"]["isLatest"]
    own = process.http.get("/v0.1/servers/local.toolscore%2Falpha/versions/latest").json()
    assert own["server"]["remotes"] == [{"type": "streamable-http", "url": f"{process.url}/servers/alpha/mcp"}]
    assert own["_meta"]["toolscore.app.gateway/scores"]["tools"]["alpha__echo"]["calls"] >= 1
    for path in ("no.such%2Fserver/versions", "com.example%2Fslack/versions/9.9.9", "noslash/versions/latest"):
        missing = process.http.get(f"/v0.1/servers/{path}")
        assert missing.status_code == 404
        assert missing.json()["error"]


def test_the_answers_have_the_official_form(process: GatewayProcess) -> None:
    """Held against the required members of the official schema (2025-12-01)."""
    for one in process.http.get("/v0.1/servers", params={"limit": 100}).json()["servers"]:
        server = one["server"]
        assert {"name", "description", "version"} <= server.keys()
        assert 3 <= len(server["name"]) <= 200
        assert 1 <= len(server["description"]) <= 100
        official = one["_meta"]["io.modelcontextprotocol.registry/official"]
        assert official["status"] in ("active", "deprecated", "deleted")
        for package in server.get("packages", []):
            assert {"registryType", "identifier", "transport"} <= package.keys()


def test_any_page_may_read_the_catalog_and_none_sees_our_servers(process: GatewayProcess) -> None:
    foreign = {"origin": "https://evil.example"}
    answer = process.http.get("/v0.1/servers", headers=foreign, params={"limit": 100})
    assert answer.headers["access-control-allow-origin"] == "*"
    names = [one["server"]["name"] for one in answer.json()["servers"]]
    assert "com.example/slack" in names
    assert not [name for name in names if name.startswith("local.toolscore")]
    own = process.http.get("/v0.1/servers/local.toolscore%2Falpha/versions/latest", headers=foreign)
    assert own.status_code == 404
    asked = process.http.options("/v0.1/servers", headers={**foreign, "access-control-request-method": "GET"})
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-methods"] == "GET, OPTIONS"
    assert process.http.get("/api/v1/tools", headers=foreign).status_code == 403, "everything else stays shut"
    assert process.http.get("/v0.1/../api/v1/tools", headers=foreign).status_code == 403


def test_strangers_make_us_ask_nobody(process: GatewayProcess, registry: Registries) -> None:
    foreign = {"origin": "https://evil.example"}
    before = len(registry.asked)
    for _ in range(5):
        answer = process.http.get("/v0.1/servers/io.github.cid%2Fmaps/versions/latest", headers=foreign)
        assert answer.json()["server"]["version"] == "1.2.0"
    assert len(registry.asked) == before
    own = process.http.get("/v0.1/servers")
    assert own.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in own.headers
    assert "Origin" in own.headers["vary"]
    crossing = process.http.get("/v0.1/servers?limit=100", headers={"sec-fetch-site": "cross-site"}).json()
    assert not [one for one in crossing["servers"] if one["server"]["name"].startswith("local.toolscore")]
    assert process.http.get("/v0.1/servers", headers={"origin": "http://["}).status_code == 200
    assert process.http.get("/api/v1/tools", headers={"origin": "http://["}).status_code == 403


def test_a_registrys_password_is_shown_to_nobody() -> None:
    settings = "discovery: {catalog: {registries: ['http://user:S3cret@127.0.0.1:9'], snapshot: false}}"
    with running_gateway(settings=settings) as gateway:
        said = json.dumps(search(gateway, "anything")) + gateway.http.post("/api/v1/catalog/refresh").text
        assert "127.0.0.1:9" in said
        assert "S3cret" not in said + gateway.output()


def test_a_caller_sees_the_servers_that_it_may_call(registry: Registries) -> None:
    settings = settings_of(registry) + "\npolicy: {rules: [{effect: deny, principals: [guest], tools: [alpha__*]}]}"
    with running_gateway({"alpha": odd("echo"), "beta": odd("echo")}, settings=settings) as gateway:
        gateway.wait_for_state("alpha", "up")
        gateway.wait_for_state("beta", "up")
        guest = with_config(gateway, "keys", "create", "guest")
        names = [
            one["server"]["name"]
            for one in httpx.get(f"{gateway.url}/v0.1/servers?limit=100", headers=bearer(guest)).json()["servers"]
        ]
        assert "local.toolscore/beta" in names
        assert "local.toolscore/alpha" not in names


def test_one_gateway_is_the_registry_of_another(process: GatewayProcess) -> None:
    settings = f"discovery: {{catalog: {{registries: ['{process.url}'], snapshot: false}}}}"
    with running_gateway(settings=settings) as other:
        found = search(other, "post a message to slack")["servers"]
        assert found[0]["name"] == "com.example/slack"
        assert toolscore("catalog", "search", "slack", gateway=other).returncode == 0
