"""Much of everything, and everybody: thousands of tools, an hour of events, other themes and widths, no mouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dashboard.conftest import Opened, expect
from dashboard.types_of_api import PAGE
from support import GatewayProcess, odd, running_gateway, toolscore, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.long

AXE = PAGE / "node_modules" / "axe-core" / "axe.min.js"
PAGES = ("/", "/ui/tools", "/ui/tools/many-0__tool_000", "/ui/servers", "/ui/servers/many-0", "/ui/calls",
         "/ui/discover", "/ui/python", "/ui/errors", "/ui/events", "/ui/access", "/ui/settings",
         "/ui/health")  # fmt: skip
TOOLS, SERVERS = 5000, 300
EVENTS = 100_000
FRAMES = 40
TAP = "window.WebSocket = class extends WebSocket { constructor(...given) { super(...given); window.tapped = this } }"
TELL = """
async ([from, count, frames]) => {
  const timestamp = new Date().toISOString();
  for (let seq = from; seq < from + count; seq++) {
    const event = {type: "tool_updated", seq, timestamp, tool_id: "x__" + seq, server_id: "x", text: "d".repeat(200)};
    tapped.onmessage(new MessageEvent("message", {data: JSON.stringify(event)}));
    if (seq % (count / frames) === 0) await new Promise(requestAnimationFrame);
  }
}
"""
"""What a server sends, put into the page's socket: `count` events with numbers from `from` on."""


@pytest.fixture(scope="module")
def crowd() -> Iterator[GatewayProcess]:
    """5,000 tools, 300 servers, of which ten are up."""
    servers = {f"many-{number}": odd("many") for number in range(TOOLS // 500)}
    servers |= {f"off-{number:03d}": {"command": "none", "disabled": True} for number in range(SERVERS - len(servers))}
    with running_gateway(servers, journal=True, python=True) as process:
        for server_id in servers:
            if server_id.startswith("many"):
                process.wait_for_state(server_id, "up", seconds=60)
        process.execute("many-0__tool_000")
        process.execute("many-0__nothing")
        yield process


def test_five_thousand_tools_and_three_hundred_servers(crowd: GatewayProcess, opened: Opened) -> None:
    page = opened(crowd, "/ui/tools")
    expect(page.get_by_text("loaded")).to_contain_text(f"{crowd.get('/api/v1/stats')['tools_total']:,} tools")
    table = page.get_by_role("region", name="Tools")
    for _ in range(40):
        table.evaluate("it => it.scrollTop = it.scrollHeight")
        page.wait_for_timeout(50)
    expect(page.get_by_role("row").last).to_be_visible()
    assert page.get_by_role("row").count() < 80, "only those in sight are in the page"
    page.goto("/ui/servers")
    expect(page.get_by_role("table", name="Servers")).to_have_attribute("aria-rowcount", str(SERVERS + 3))
    assert page.get_by_role("row").count() < 80


def heap(page: Page) -> int:
    """Bytes of the page's objects, after what is garbage has gone."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.enable")
    session.send("HeapProfiler.collectGarbage")
    used = int(session.send("Runtime.getHeapUsage")["usedSize"])
    session.detach()
    return used


def test_an_hour_of_events_leaves_the_page_as_it_was(crowd: GatewayProcess, opened: Opened) -> None:
    """The real socket, on which the test lets 100,000 events more come."""
    page = opened(crowd, "/ui/health")
    page.add_init_script(TAP)
    page.goto("/ui/events")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    seq = crowd.get("/api/v1/stats")["last_event_seq"]

    def tell(count: int) -> None:
        nonlocal seq
        page.evaluate(TELL, [seq + 1, count, FRAMES])
        seq += count
        expect(page.get_by_role("cell", name=str(seq), exact=True)).to_be_visible(timeout=60_000)

    tell(EVENTS // 5)  # more than it remembers
    before = heap(page)
    for _ in range(4):
        tell(EVENTS // 5)
    assert heap(page) < before + 8_000_000, "it grows"
    assert page.get_by_role("row").count() < 80
    page.get_by_role("button", name="Pause").click()
    page.evaluate(TELL, [seq + 1, 1, 1])
    expect(page.get_by_role("button", name="Go on")).to_contain_text("1 new")
    expect(page.get_by_role("cell", name=str(seq), exact=True)).to_be_visible()


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_everybody_can_use_it(crowd: GatewayProcess, opened: Opened, theme: str) -> None:
    """axe-core finds nothing serious on any page."""
    page = opened(crowd, color_scheme=theme, reduced_motion="reduce")
    rules = AXE.read_text()
    found: dict[str, list[Any]] = {}
    for path in PAGES:
        page.goto(path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        page.evaluate(rules)
        result = page.evaluate("axe.run()")
        serious = [
            (
                one["id"],
                [
                    node["html"][:160] + " " + node["any"][0]["message"][:120] if node["any"] else ""
                    for node in one["nodes"]
                ][:3],
            )
            for one in result["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        if serious:
            found[path] = serious
    assert not found


def test_it_fits_a_small_screen(crowd: GatewayProcess, opened: Opened) -> None:
    page = opened(crowd, viewport={"width": 360, "height": 740})
    for path in PAGES:
        page.goto(path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Tools", exact=True).click()
    expect(page.get_by_role("heading", name="Tools", level=1)).to_be_visible()


def test_the_keyboard_alone_will_do(crowd: GatewayProcess, opened: Opened) -> None:
    page = opened(crowd, "/ui/health")
    expect(page.get_by_role("heading", name="Parts")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto("/ui/tools/many-0__tool_000")
    page.get_by_role("tab", name="Run").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Score")).to_have_attribute("aria-selected", "true")
    page.goto("/ui/servers")
    page.get_by_role("button", name="Add a server").focus()
    page.keyboard.press("Enter")
    for _ in range(30):  # it keeps the focus, or the browser's own controls have it
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement.closest('dialog') !== null || document.activeElement === document.body"
        )
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Add a server")).to_be_focused()


def test_a_caller_without_admin_sees_what_it_may(opened: Opened, tmp_path: Path) -> None:
    settings = """
access: {local_without_key: false}
policy: {rules: [{effect: deny, principals: [guest], tools: ["secret__*"]}]}
"""
    with running_gateway({"open": odd("echo"), "secret": odd("echo")}, settings=settings, journal=True) as process:
        made = toolscore("keys", "create", "guest", "--config", str(process.config))
        key = next(word for word in made.stdout.split() if word.startswith("ts_"))
        wait_for(lambda: process.http.get("/api/v1/whoami", headers={"x-api-key": key}).status_code == 200)
        page = opened(process)
        page.get_by_label("API key").fill(key)
        page.get_by_label("Keep it while this tab is open").check()
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("navigation").get_by_role("listitem")).to_have_count(8)
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        for path in ("/ui/servers", "/ui/tools", "/ui/events", "/ui/servers/open"):
            page.goto(path)
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            expect(page.locator(".loading")).to_have_count(0)
            expect(page.locator("main").get_by_text("open").locator("visible=true").first).to_be_visible()
            expect(page.locator("main").get_by_text("secret")).to_have_count(0)
            expect(page.get_by_role("button", name="Restart", exact=True)).to_have_count(0)
        page.goto("/ui/settings")
        expect(page.get_by_role("alert")).to_contain_text("it takes the scope 'admin'")
