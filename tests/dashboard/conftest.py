"""Fixtures: a real browser, and what it may not do while a page is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support import GatewayProcess, debian_package

from toolscore.dashboard.build import build

if TYPE_CHECKING:  # each process that runs tests reads this file, and few of them need half a second of Playwright
    from playwright.sync_api import Browser, Page


def expect(seen: Any) -> Any:
    """Playwright's, with time for a slow machine."""
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    return expect(seen)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, for the page as its sources are now.

    Of a module, not of the session: as long as Playwright is there, asyncio takes its loop for one that runs, and
    no other test of this worker could run one.
    """
    from playwright.sync_api import sync_playwright

    build()
    program = debian_package("chromium", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(program), args=["--no-sandbox"])
        yield chromium
        chromium.close()


Opened = Callable[..., "Page"]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """Opens a gateway's page. At the end: it asked no other host, its policy refused nothing, no script failed."""
    contexts: list[Any] = []
    problems: list[str] = []

    def opening(process: GatewayProcess, path: str = "/", *, expected: str = "", **options: Any) -> Page:
        """`expected`: what a message that is none of the page's faults has in it."""
        context = browser.new_context(base_url=process.url, permissions=["clipboard-write"], **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()

        def asked(request: Any) -> None:
            if not request.url.startswith((process.url, process.url.replace("http", "ws"), "data:", "blob:")):
                problems.append(f"asked {request.url}")

        def said(message: Any) -> None:
            about_network = message.text.startswith(("Failed to load resource", "WebSocket connection"))
            if message.type == "error" and not about_network and not (expected and expected in message.text):
                problems.append(message.text)

        def failed(error: Any) -> None:
            if not (expected and expected in str(error)):
                problems.append(f"a script failed: {error}")

        page.on("request", asked)
        page.on("console", said)
        page.on("pageerror", failed)
        page.goto(path)
        return page

    yield opening
    for context in contexts:
        context.close()
    assert not problems
