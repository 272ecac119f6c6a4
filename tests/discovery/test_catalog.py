"""Catalogs: registries in the official format, copied whole, searched offline; and us as one of them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import httpx
import pytest
from servers.registries import Registries
from support import GatewayProcess, bearer, odd, running_gateway, toolscore

from toolscore.core.errors import ToolScoreError
from toolscore.discovery import CatalogRules, Entry, InstallRules, MCPSearchTool, Offer, Wish
from toolscore.discovery.install.plan import plan_for
from toolscore.discovery.install.wish import wish_for
from toolscore.discovery.views import candidate_fields, offer_fields, source_fields
from toolscore.embedding import LightEmbedder
from toolscore.stores.database import open_database

LIGHT = LightEmbedder()
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


@asynccontextmanager
async def catalog_of(folder: Path, rules: CatalogRules) -> AsyncIterator[MCPSearchTool]:
    """A catalog without a gateway. What it knows is kept in the folder."""
    async with (
        open_database(f"sqlite+aiosqlite:///{folder / 'toolscore.db'}") as database,
        aiohttp.ClientSession() as http,
        MCPSearchTool(database, LIGHT, http, rules) as catalog,
    ):
        yield catalog


def search(process: GatewayProcess, query: str, limit: int = 5) -> dict[str, Any]:
    return dict(process.get("/api/v1/catalog/search", q=query, limit=limit))


@pytest.fixture(scope="module")
def process(registry: Registries) -> Iterator[GatewayProcess]:
    """Its second registry wants a password, and is never there."""
    registries = json.dumps([registry.url, "http://user:S3cret@127.0.0.1:9"])
    settings = (
        f"discovery: {{catalog: {{registries: {registries}, snapshot: false}}}}\n"
        "policy: {rules: [{effect: deny, principals: [guest], tools: [alpha__*]}]}\n"
    )
    with running_gateway({"alpha": odd("echo"), "beta": odd("echo")}, settings=settings) as gateway:
        gateway.wait_for_state("alpha", "up")
        gateway.wait_for_state("beta", "up")
        yield gateway


@pytest.mark.long
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


@pytest.mark.long
def test_it_works_offline_from_the_last_copy_and_says_how_old_that_is(tmp_path: Path, registry: Registries) -> None:
    rules = CatalogRules(registries=(registry.url,), snapshot=False, max_age_hours=1)

    async def run() -> None:
        async with catalog_of(tmp_path, rules) as catalog:
            assert (await catalog.search("sql database"))[0].entry.name == "io.github.ada/postgres"
        async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'toolscore.db'}") as database:
            kept = await database.load_catalog(registry.url)
            assert kept is not None
            await database.save_catalog(registry.url, kept[0], kept[1] - 2 * 3600 * 1000)  # two hours pass
        registry.down = True
        try:
            async with catalog_of(tmp_path, rules) as catalog:
                began = time.monotonic()
                found = await catalog.search("sql database")
                assert time.monotonic() - began < 2.5, "nobody waits for a registry that was copied before"
                assert found[0].entry.name == "io.github.ada/postgres"
                (state,) = await catalog.refresh()
                assert "503" in (state.error or "")
                assert state.age_seconds is not None
                assert state.age_seconds >= 7200
                assert (await catalog.search("sql database"))[0].entry.name == "io.github.ada/postgres"
        finally:
            registry.down = False

    asyncio.run(run())


@pytest.mark.long
def test_the_command_line_says_that_a_registry_is_away(process: GatewayProcess, registry: Registries) -> None:
    search(process, "sql database")
    registry.down = True
    try:
        assert "503" in toolscore("catalog", "refresh", gateway=process).stdout
        said = toolscore("catalog", "search", "sql database", gateway=process)
        assert "io.github.ada/postgres" in said.stdout
        assert "could not be asked" in said.stderr
    finally:
        registry.down = False
        process.http.post("/api/v1/catalog/refresh")


@pytest.mark.long
def test_a_registry_that_was_never_reached_costs_a_bounded_wait(tmp_path: Path) -> None:
    async def run() -> None:
        async with catalog_of(tmp_path, CatalogRules(registries=("http://127.0.0.1:9",))) as catalog:
            began = time.monotonic()
            found = await catalog.search("what time is it in Tokyo", limit=3)
            assert time.monotonic() - began < 60
            assert found[0].entry.name == "io.github.modelcontextprotocol/time", "the snapshot that comes with us"
            states = {state.kind: state for state in await catalog.states()}
            assert states["registry"].error
            assert states["registry"].age_seconds is None
            assert states["snapshot"].entries > 500

    asyncio.run(run())


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    server = {"name": "com.corp/payroll", "description": "Salaries and payslips", "version": "1.0.0"}
    file.write_text(json.dumps([server]))
    rules = CatalogRules(registries=(), snapshot=False, file=str(file))

    async def run() -> None:
        async with catalog_of(tmp_path, rules) as catalog:
            found = await catalog.search("show me my payslip")
            assert [one.entry.name for one in found] == ["com.corp/payroll"]
            assert not found[0].entry.vouched
        file.write_text("not json")
        async with catalog_of(tmp_path, rules) as catalog:
            assert await catalog.search("payslip") == []
            (state,) = await catalog.states()
            assert "Expecting value" in (state.error or ""), "what is wrong with the file"

    asyncio.run(run())


def test_other_rules_are_obeyed_at_once(tmp_path: Path, registry: Registries) -> None:
    async def run() -> None:
        async with catalog_of(tmp_path, CatalogRules(registries=(), snapshot=False)) as catalog:
            assert await catalog.search("sql database") == []
            catalog.use(CatalogRules(registries=(registry.url,), snapshot=False))
            assert (await catalog.search("sql database"))[0].entry.name == "io.github.ada/postgres"

    asyncio.run(run())


class AnyRegistry(BaseHTTPRequestHandler):
    """Answers with `body`, whatever it is asked."""

    body: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def any_registry() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), AnyRegistry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


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
        {"servers": [{"server": {"name": "a/ok", "packages": [{
            "registryType": "pypi", "identifier": "ok",
            "packageArguments": [{"name": {"a": 1}, "isRequired": 1, "format": "filepath", "description": 7},
                                 {"valueHint": ["x"], "value": 3}, 5],
            "environmentVariables": [{"name": "A", "isRequired": 1, "description": {"a": 1}}]}]}}]},
    ],
)  # fmt: skip
def test_a_registry_may_say_anything(page: Any, tmp_path: Path, any_registry: str) -> None:
    """Nothing of it breaks the search, and what can be used of it is."""
    AnyRegistry.body = json.dumps(page).encode()

    async def look() -> None:
        async with catalog_of(tmp_path, CatalogRules(registries=(any_registry,), snapshot=False)) as catalog:
            found = await catalog.search("ok something")
            (state,) = await catalog.states()
            json.dumps(source_fields(state))
            for one in found:
                try:
                    plan = plan_for(Wish(one.entry), InstallRules(), tmp_path)
                except ToolScoreError:
                    plan = None
                json.dumps(offer_fields(Offer(one, 0.5, plan, False, None)))
            await catalog.page()

    asyncio.run(look())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"not json", "Expecting value"),
        (b"[]", "no page of servers"),
        (b" " * (8 * 1024 * 1024 + 1), "more than 8,388,608 bytes"),
        (b'{"servers": [], "metadata": {"nextCursor": {"a": 1}}}', "no text"),
    ],
    ids=["deep", "text", "list", "large", "cursor"],
)
def test_what_is_no_page_is_said(body: bytes, expected: str, tmp_path: Path, any_registry: str) -> None:
    AnyRegistry.body = body

    async def look() -> None:
        async with catalog_of(tmp_path, CatalogRules(registries=(any_registry,), snapshot=False)) as catalog:
            assert await catalog.search("ok something") == []
            (state,) = await catalog.states()
            assert expected in (state.error or "")

    asyncio.run(look())


def test_a_version_that_no_catalog_says_is_not_made_up(tmp_path: Path, any_registry: str) -> None:
    """The official format must have one: as another registry we give what it has for that."""
    remote = {"type": "streamable-http", "url": "https://example.com/mcp"}
    AnyRegistry.body = json.dumps(
        {"servers": [{"server": {"name": "org.stranger/maps", "remotes": [remote]}}]}
    ).encode()

    async def look() -> None:
        async with catalog_of(tmp_path, CatalogRules(registries=(any_registry,), snapshot=False)) as catalog:
            entry = await catalog.get("org.stranger/maps")
            (candidate,) = await catalog.search("maps")
            assert candidate_fields(candidate)["version"] is None
            assert plan_for(Wish(entry), InstallRules(), tmp_path).version is None
            for asked in ("latest", "0.0.0", None):
                (shown,), _ = await catalog.page(cursor=None, limit=10, search=None, updated_since=None, version=asked)
                assert shown.server["version"] == "0.0.0"
            with pytest.raises(ToolScoreError) as refused:
                await catalog.get("org.stranger/maps", "9.9.9")
            assert refused.value.suggestion == "versions: none is known"

    asyncio.run(look())


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
    theirs = [
        [name for name in listed(process, updated_since=since)[0] if not name.startswith("local.toolscore/")]
        for since in ("2026-06-01T01:00:00+02:00", "2026-06-01T01:00:00+00:30", "9998-01-01T00:00:00-12:00")
    ]
    assert theirs[0], "an hour before by UTC, though the text is greater"
    assert theirs[1:] == [[], []]
    assert process.http.get("/v0.1/servers", params={"updated_since": "yesterday"}).status_code == 422
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
    assert own["_meta"]["toolscore.gateway/scores"]["tools"]["alpha__echo"]["calls"] >= 1
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


def test_a_registrys_password_is_shown_to_nobody(process: GatewayProcess) -> None:
    said = json.dumps(search(process, "anything")) + process.http.post("/api/v1/catalog/refresh").text
    assert "127.0.0.1:9" in said
    assert "S3cret" not in said + process.output()


def test_a_caller_sees_the_servers_that_it_may_call(
    process: GatewayProcess, new_key: Callable[[GatewayProcess, str], str]
) -> None:
    guest = new_key(process, "guest")
    names = [
        one["server"]["name"]
        for one in httpx.get(f"{process.url}/v0.1/servers?limit=100", headers=bearer(guest)).json()["servers"]
    ]
    assert "local.toolscore/beta" in names
    assert "local.toolscore/alpha" not in names


def test_one_gateway_is_the_registry_of_another(process: GatewayProcess, tmp_path: Path) -> None:
    search(process, "x")

    async def run() -> None:
        async with catalog_of(tmp_path, CatalogRules(registries=(process.url,), snapshot=False)) as catalog:
            found = await catalog.search("post a message to slack")
            assert found[0].entry.name == "com.example/slack"
            assert (await catalog.get("com.example/slack", "1.0.0")).version == "1.0.0"

    asyncio.run(run())


NAMES = ("github slack filesystem git postgres sqlite fetch time memory playwright notion brave-search sentry gitlab "
         "redis mongodb jira linear figma stripe duckduckgo puppeteer").split()  # fmt: skip


@pytest.mark.long
def test_what_most_people_mean_by_a_name_is_what_they_get(tmp_path: Path, any_registry: str) -> None:
    strangers = [
        {"server": {"name": f"org.stranger/{name}", "description": f"{name} {name}",
                    "packages": [{"registryType": "npm", "identifier": "x"}]}}
        for name in NAMES
    ]  # fmt: skip
    AnyRegistry.body = json.dumps({"servers": strangers}).encode()

    async def look() -> None:
        async with catalog_of(tmp_path, CatalogRules(registries=(any_registry,))) as catalog:
            for name in NAMES:
                entry = await catalog.get(name)
                assert entry.source == "well-known", name
                assert name in entry.known_as
                found = await catalog.search(f"{name} server")
                assert found[0].entry.name == entry.name, name
                plan = plan_for(wish_for(Wish(entry), containers=False), InstallRules(), tmp_path)
                assert plan.server_id == entry.known_as[0]
                assert plan.obstacle is None
                assert set(plan.asks) >= {*plan.needs, *plan.needs_arguments}, "each says what it is"
            assert (await catalog.get("org.stranger/github")).name == "org.stranger/github"
            await catalog.search("memory usage of my cluster over the last week")  # a word is not always a name

    asyncio.run(look())
