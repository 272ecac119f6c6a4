"""What people do on the page, each to its end: a real gateway, real servers, Debian's Chromium."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dashboard.conftest import Opened, expect
from servers.registries import Registries, server_source
from support import ROOT, Fickle, GatewayProcess, running_gateway, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.long

TIME_SERVER = ROOT / ".cache" / "servers" / "current" / "bin" / "mcp-server-time"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    fickle = Fickle(tmp_path_factory.mktemp("city"))
    with running_gateway(
        {"city": fickle.entry}, settings="pins: {breaking: quarantine}", journal=True, python=True
    ) as one:
        one.wait_for_state("city", "up")
        one.fickle = fickle  # type: ignore[attr-defined]
        yield one


def row(page: Page, text: str) -> Locator:
    return page.get_by_role("row").filter(has_text=text)


def write(page: Page, label: str, text: str) -> None:
    """Put a text into an editor in the place of what is there, as the keyboard does."""
    page.locator(".cm-content").get_by_label(label).or_(page.get_by_label(label)).click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.press("Delete")  # or the browser would give what comes the style of what goes
    page.keyboard.insert_text(text)


def test_a_newcomer_finds_the_way_in(gateway: GatewayProcess, opened: Opened) -> None:
    page = opened(gateway)
    expect(page.get_by_role("heading", name="How to begin")).to_be_visible()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.get_by_role("button", name="Run it").click()
    expect(page.get_by_text("499500").first).to_be_visible()
    for client in ("Claude Code", "Claude Desktop", "Cursor", "VS Code", "Python", "curl"):
        page.get_by_role("tab", name=client, exact=True).click()
        expect(page.get_by_label(client, exact=True).locator("visible=true").last).to_contain_text(gateway.url)
    page.get_by_role("link", name="Add a server").click()
    expect(page.get_by_role("dialog", name="Add a server")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_attach_a_server_call_it_by_the_form_and_replay_it(gateway: GatewayProcess, opened: Opened) -> None:
    page = opened(gateway, "/ui/servers")
    page.get_by_role("button", name="Add a server").click()
    page.get_by_label("Its id here").fill("time")
    page.get_by_label("Command", exact=True).fill(str(TIME_SERVER))
    page.get_by_role("button", name="Add it").click()
    expect(row(page, "time")).to_contain_text("up")
    page.get_by_role("link", name="Tools", exact=True).click()
    page.get_by_role("searchbox").fill("what time is it in Tokyo")
    found = page.get_by_role("table", name="Tools that fit").get_by_role("row").filter(has_text="get_current_time")
    found.get_by_role("link").click()
    form = page.get_by_role("region", name="Arguments")
    form.get_by_role("button", name="Run").click()
    expect(form).to_contain_text("is required")
    form.get_by_label("timezone").fill("Asia/Tokyo")
    form.get_by_role("button", name="Run").click()
    result = page.get_by_role("region", name="Result")
    expect(result).to_contain_text("+09:00")
    result.get_by_role("tab", name="JSON").click()
    expect(result).to_contain_text("day_of_week:")
    elsewhere = page.get_by_role("region", name="The same from elsewhere")
    expect(elsewhere).to_contain_text('"timezone":"Asia/Tokyo"')
    page.get_by_role("link", name="Calls", exact=True).click()
    expect(page.get_by_role("table", name="Calls").get_by_role("row").nth(1)).to_contain_text("time__get_current_time")
    page.get_by_label("Outcome").select_option("ok")
    page.get_by_role("combobox", name="Server").select_option("time")
    expect(page).to_have_url(re.compile("outcome=ok.*server_id=time|server_id=time.*outcome=ok"))
    page.get_by_role("table", name="Calls").get_by_role("row").nth(1).get_by_role("link").click()
    expect(page.get_by_role("region", name="Where its time went")).to_contain_text("server")
    expect(page.get_by_role("group", name="arguments")).to_contain_text("Asia/Tokyo")
    page.get_by_role("button", name="Replay").click()
    again = page.get_by_role("region", name="Make it again")
    expect(again).to_contain_text(re.compile("the result differs|the same result"))
    expect(again.get_by_role("heading", name=re.compile("^Now"))).to_be_visible()


def test_the_journal_grows_while_one_looks(gateway: GatewayProcess, opened: Opened) -> None:
    page = opened(gateway, "/ui/calls?tool_id=city__write")
    expect(page.get_by_text("No calls")).to_be_visible()
    gateway.execute("city__write", {"city": "Oslo"})
    expect(page.get_by_role("table", name="Calls").get_by_role("row")).to_have_count(2)
    gateway.execute("city__write", {"city": "Bergen"})
    expect(page.get_by_role("table", name="Calls").get_by_role("row")).to_have_count(3)


def test_a_changed_tool_is_looked_at_and_approved(gateway: GatewayProcess, opened: Opened) -> None:
    page = opened(gateway)
    changed = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    gateway.fickle.order(tools={"look": {"inputSchema": changed}})  # type: ignore[attr-defined]
    gateway.http.post("/api/v1/servers/city/restart")
    needs = page.get_by_role("region", name=re.compile("needs? you"))
    needs.get_by_role("listitem").filter(has_text="city__look").get_by_role("link", name="Look at the change").click()
    expect(page.get_by_label("difference")).to_contain_text("required")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("heading", name="Held to this definition")).to_be_visible()
    assert not gateway.get("/api/v1/pins", quarantined=True)["pins"]


def test_a_tool_is_switched_off_and_on(gateway: GatewayProcess, opened: Opened) -> None:
    page = opened(gateway, "/ui/servers/city")
    switch = page.get_by_role("switch", name=re.compile("^measure is"))
    expect(switch).to_be_checked()
    switch.click()
    expect(switch).not_to_be_checked()
    assert gateway.execute("city__measure", {})["error"]["code"] == "tool_not_found"
    switch.click()
    expect(switch).to_be_checked()
    assert gateway.http.get("/api/v1/tools/city__measure").status_code == 200


def test_a_key_is_made_used_and_revoked(gateway: GatewayProcess, opened: Opened) -> None:
    page = opened(gateway, "/ui/access")
    page.get_by_role("button", name="Make a key").click()
    page.get_by_label("Whose it is").fill("ada")
    page.get_by_role("button", name="Make it").click()
    key = page.get_by_label("the key", exact=True).inner_text()
    assert re.fullmatch(r"ts_[0-9a-f]{12}_\S{43}", key.strip())
    page.get_by_role("button", name="I have it").click()

    hers = opened(gateway)
    hers.get_by_role("button", name="local : use another key").click()
    hers.get_by_label("API key").fill(key.strip())
    hers.get_by_role("button", name="Go on").click()
    expect(hers.get_by_role("button", name="ada : use another key")).to_be_visible()
    expect(hers.get_by_role("link", name="Settings")).to_have_count(0)
    expect(hers.get_by_text("Live", exact=True)).to_be_visible()
    assert hers.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0], "it stays in memory"

    keys = page.get_by_role("region", name="API keys").get_by_role("listitem").filter(has_text="ada")
    keys.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Revoke it").click()
    expect(keys).to_contain_text("revoked")
    expect(hers.get_by_role("heading", name="Your key")).to_be_visible()
    hers.get_by_role("button", name="Go on without a key").click()
    expect(hers.get_by_role("button", name="local : use another key")).to_be_visible()


def test_a_wrong_key_changes_nothing(gateway: GatewayProcess, opened: Opened) -> None:
    page = opened(gateway, "/ui/servers")
    page.get_by_role("button", name="local : use another key").click()
    page.get_by_label("API key").fill("ts_000000000000_" + "x" * 43)
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("dialog")).to_contain_text("the key is not valid")
    page.keyboard.press("Escape")
    expect(row(page, "city")).to_contain_text("up")


def test_a_page_that_cannot_be_had_says_so_in_its_place(gateway: GatewayProcess, opened: Opened) -> None:
    page = opened(gateway, "/ui/servers", expected="this page is not here yet")
    page.route("**/PythonPage*.js", lambda route: route.abort())
    page.reload()
    page.get_by_role("link", name="Python", exact=True).click()
    expect(page.get_by_role("heading", name="This page failed")).to_be_visible()
    expect(page.get_by_role("link", name="Servers", exact=True)).to_be_visible()


def test_a_server_that_is_killed_comes_back_before_ones_eyes(gateway: GatewayProcess, opened: Opened) -> None:
    page = opened(gateway, "/ui/events?type=server_up")
    pid = gateway.server("city")["pid"]
    before = page.get_by_role("table", name="Events").get_by_role("row").count()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: gateway.server("city")["pid"] not in (None, pid), 120)
    expect(page.get_by_role("table", name="Events").get_by_role("row").nth(max(1, before))).to_be_visible()


def test_what_is_missing_is_installed_and_called(opened: Opened) -> None:
    with Registries() as registries:
        wheel = registries.add_wheel("plain-server", server_source("plain"))
        registries.publish(
            "org.nobody/plain", packages=[wheel], description="Looks up the price of a stock at an exchange"
        )
        settings = f'discovery: {{catalog: {{registries: ["{registries.url}"], snapshot: false}}}}'
        with running_gateway(settings=settings, start=False, journal=True, python=True) as process:
            process.environment = registries.environment
            process.start()
            assert process.http.post("/api/v1/catalog/refresh").json()["success"]
            task = "look up the price of a stock at an exchange"
            asked = process.http.post("/api/v1/tools/request-capability", json={"task_description": task}).json()[
                "data"
            ]
            assert asked["status"] == "needs_approval", asked
            page = opened(process)
            needs = page.get_by_role("region", name=re.compile("needs? you"))
            needs.get_by_role("link", name="Decide").click()
            expect(page.get_by_role("heading", name="Something is missing for this")).to_be_visible()
            page.get_by_role("button", name="Install …").click()
            dialog = page.get_by_role("dialog")
            expect(dialog.get_by_label("commands")).to_contain_text("$ uv venv")
            expect(dialog).to_contain_text("no rule: it takes your approval")
            dialog.get_by_role("button", name="Approve and install").click()
            expect(dialog).to_contain_text("installed", timeout=60_000)
            dialog.get_by_role("link", name="plain__look").click()
            page.get_by_role("button", name="Run", exact=True).click()
            expect(page.get_by_role("region", name="Result")).to_contain_text("fine")
            page.goto("/ui/discover")
            expect(page.get_by_role("heading", name="Waiting for approval")).to_have_count(0)
            page.get_by_role("button", name="Uninstall").click()
            page.get_by_role("button", name="Uninstall it").click()
            expect(page.get_by_text("Nothing yet")).to_be_visible()
            assert process.http.get("/api/v1/servers/plain").status_code == 404


def test_the_page_lives_through_the_end_of_the_gateway(opened: Opened) -> None:
    with running_gateway(python=True, journal=True) as process:
        page = opened(process, "/ui/servers")
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        process.kill()
        expect(page.get_by_text(re.compile(r"Connection lost, retrying in \d+ s"))).to_be_visible()
        process.start()
        expect(page.get_by_text("Live", exact=True)).to_be_visible(timeout=40_000)
        expect(row(page, "python-executor-mcp-server")).to_contain_text("up")


def test_a_key_is_asked_for_where_one_is_needed(opened: Opened) -> None:
    with running_gateway(settings="access: {local_without_key: false}") as process:
        page = opened(process)
        expect(page.get_by_role("heading", name="Your key")).to_be_visible()
        page.get_by_label("API key").fill("ts_000000000000_" + "x" * 43)
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("alert")).to_contain_text("the key is not valid")


def test_a_clients_file_is_looked_at_and_added(gateway: GatewayProcess, opened: Opened, tmp_path: Path) -> None:
    other = Fickle(tmp_path / "other")
    file = {"mcpServers": {"town": {**other.entry, "env": {"API_KEY": "open"}}, "city": other.entry}}
    page = opened(gateway, "/ui/servers?add=true")
    page.get_by_role("tab", name="Paste a file").click()
    write(page, "A client's file", "// a comment\n" + json.dumps(file)[:-1] + ",}")
    page.get_by_role("button", name="Look at it").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("listitem").filter(has_text="town")).to_contain_text("API_KEY: a secret stands in it")
    expect(dialog.get_by_role("listitem").filter(has_text="city")).to_contain_text("id is taken")
    dialog.get_by_role("button", name="Add 1 server").click()
    expect(row(page, "town")).to_contain_text("up")
    gateway.http.delete("/api/v1/servers/town")


def test_python_has_a_cell_and_sessions(gateway: GatewayProcess, opened: Opened) -> None:
    page = opened(gateway, "/ui/python")
    write(page, "Python code", "x = 6 * 7\nprint(x)")
    page.get_by_role("textbox", name="Session").fill("mine")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("region", name="What it gave")).to_contain_text("42")
    sessions = page.get_by_role("region", name="Your sessions")
    expect(sessions.get_by_role("listitem")).to_contain_text("mine")
    sessions.get_by_role("button", name="End").click()
    expect(sessions).to_contain_text("No session is open")
    write(page, "Python code", "while True: pass")
    page.get_by_role("button", name="Run", exact=True).click()
    wait_for(lambda: gateway.get("/api/v1/stats")["calls_in_flight"])  # one that has not come is no call
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("region", name="What it gave")).to_contain_text("cancelled")
    wait_for(lambda: gateway.get("/api/v1/calls", outcome="cancelled")["calls"])


def test_a_disabled_server_can_be_detached(gateway: GatewayProcess, opened: Opened, tmp_path: Path) -> None:
    entry = Fickle(tmp_path / "village").entry
    gateway.http.post("/api/v1/servers", json={"server_id": "village", **entry})
    gateway.wait_for_state("village", "up")
    page = opened(gateway, "/ui/servers/village")
    page.get_by_role("button", name="Disable", exact=True).click()
    expect(page.get_by_role("button", name="Enable", exact=True)).to_be_visible()
    page.get_by_role("button", name="Detach", exact=True).click()
    page.get_by_role("button", name="Detach it").click()
    expect(page.get_by_role("heading", name="Servers", level=1)).to_be_visible()
    assert gateway.http.get("/api/v1/servers/village").status_code == 404


def test_an_optional_argument_is_a_field_like_others(gateway: GatewayProcess, opened: Opened, tmp_path: Path) -> None:
    optional = {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "How Many"}
    changed = {"type": "object", "properties": {"limit": optional}}
    wide = Fickle(tmp_path / "wide")
    wide.order(tools={"measure": {"inputSchema": changed}})
    gateway.http.post("/api/v1/servers", json={"server_id": "wide", **wide.entry})
    gateway.wait_for_state("wide", "up")
    page = opened(gateway, "/ui/tools/wide__measure")
    page.get_by_label("How Many").fill("3")
    expect(page.get_by_role("region", name="The same from elsewhere")).to_contain_text('"parameters":{"limit":3}')
    page.get_by_label("How Many").fill("")
    expect(page.get_by_role("region", name="The same from elsewhere")).to_contain_text('"parameters":{}')
    gateway.http.delete("/api/v1/servers/wide")


def test_a_fix_is_written_and_switched_off(gateway: GatewayProcess, opened: Opened) -> None:
    gateway.http.post("/api/v1/errors/fixes", json={"message": "no such city: 'X'", "text": "ask for another city"})
    match = gateway.http.post("/api/v1/errors/match", json={"message": "no such city: 'X'"}).json()["data"]
    assert match["count"] == 0, "nothing has failed yet"
    page = opened(gateway, "/ui/errors")
    fix = page.get_by_role("listitem").filter(has_text="ask for another city")
    expect(fix).to_contain_text("callers are told")
    fix.get_by_role("button", name="Switch off").click()
    expect(fix.get_by_role("button", name="Switch on")).to_be_visible()
    match = gateway.http.post("/api/v1/errors/match", json={"message": "no such city: 'X'"}).json()["data"]
    assert match["suggestion"] is None


def test_what_a_server_sends_is_shown_as_text(opened: Opened, tmp_path: Path) -> None:
    hostile = Fickle(tmp_path / "hostile")
    nasty = (
        "<img src=x onerror=document.title=1> \x1b[31mred\x1b[0m \u202eevil\u2066 [a](javascript:alert(1)) "
        + "w" * 100_000
    )
    hostile.order(tools={"look": {"description": nasty, "inputSchema": {"type": "object", "properties": {
        "city": {"type": "string", "description": nasty[:200], "title": "<b>city</b>"}}}}})  # fmt: skip
    with running_gateway({"bad": hostile.entry}, settings="pins: {suspicious: accept}", journal=True) as process:
        process.wait_for_state("bad", "up")
        page = opened(process, "/ui/tools/bad__look")
        expect(page.get_by_text("<img src=x").first).to_contain_text("␛[31mred")
        expect(page.get_by_text("⟨U+202E⟩evil").first).to_be_visible()
        expect(page.locator("main img, main a[href^=javascript]")).to_have_count(0)
        expect(page.get_by_text("<b>city</b>").first).to_be_visible()
        page.get_by_role("link", name="Tools", exact=True).click()
        expect(row(page, "evil")).to_contain_text("<img src=x")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
