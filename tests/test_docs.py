"""The docs name everything that a caller or an operator can meet, and their links lead somewhere."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.routing import Route
from support import ROOT

from toolscore.app.compose import open_gateway
from toolscore.app.files import Loaded
from toolscore.app.settings import Settings
from toolscore.core import errors
from toolscore.core.entries import SPELLED, WITHOUT_EFFECT
from toolscore.core.models import EVENT_TYPES, UpstreamSpec
from toolscore.endpoints.app import create_app
from toolscore.telemetry.metrics import Metrics

DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]
)
WRITTEN = [page for page in PAGES if page.exists()]
MADE_ELSEWHERE = {ROOT / "CONTRIBUTING.md"}
"""Pages that may be linked to before they are there."""

README_LINES = 130
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
EVENT = re.compile(r"""\b_?(?:publish|tell)\(\s*"([a-z]+_[a-z_]+)\"""")
SETTINGS_TABLE = re.compile(r"<!-- settings: begin -->(.*)<!-- settings: end -->", re.DOTALL)


def page(name: str) -> str:
    return (DOCS / name).read_text()


def missing(names: set[str], text: str) -> list[str]:
    """The names that do not stand in code in a page, by themselves or with what follows a name (`` `GET /…?q=` ``)."""
    return sorted(name for name in names if not re.search(rf"`{re.escape(name)}(?![A-Za-z0-9_/-])", text))


def event_types() -> set[str]:
    """What is published or told anywhere in the gateway; the notifier's own `lagged` among it."""
    found = {"lagged"}
    for path in (ROOT / "toolscore").rglob("*.py"):
        if "cli" not in path.parts:  # whose `tell` prints
            found.update(EVENT.findall(path.read_text()))
    return found


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Method and path of every HTTP route of the application, in its OpenAPI or left out of it."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path
    for route in app.routes:
        if isinstance(route, Route) and not route.path.startswith(("/docs", "/openapi.json")):
            for method in (route.methods or set()) - {"HEAD"}:
                yield method, route.path.replace(":path}", "}")


def test_every_error_code_is_in_the_wire_page() -> None:
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type))
    tree = [kind for kind in kinds if issubclass(kind, errors.ToolScoreError)]
    table = page("wire.md").rpartition("\n## Errors\n")[2]
    rows = {row.group(1): row.group(0) for row in re.finditer(r"^\| `(\w+)` \|.*$", table, re.MULTILINE)}
    wrong = [
        kind.__name__
        for kind in tree
        if kind.code not in rows or str(kind.status) not in rows[kind.code] or str(kind.rpc_code) not in rows[kind.code]
    ]
    assert wrong == []


def test_every_metric_is_in_the_operations_page() -> None:
    metrics = {family.name for family in Metrics().registry.collect()}
    assert missing(metrics, page("operations.md")) == []


def test_every_event_type_is_in_the_wire_page() -> None:
    types = event_types()
    assert {"tool_installed", "circuit_changed", "call_finished", "install_progress", "settings_rejected"} <= types
    assert types <= set(EVENT_TYPES)
    assert missing(set(EVENT_TYPES), page("wire.md")) == []
    table = page("wire.md").partition("### Event types")[2].partition("\n### ")[0]
    rows = [row.partition(" | ")[0] for row in table.splitlines() if row.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(EVENT_TYPES)


async def routes_of_a_gateway(folder: Path) -> set[tuple[str, str]]:
    settings = Settings(storage={"data_dir": str(folder)})  # type: ignore[arg-type]
    async with open_gateway(Loaded(settings, [], {}), watch=False) as gateway:
        front = create_app(gateway)
        return set(routes(await front.api()))  # what stands behind the front door


@pytest.mark.long
def test_every_rest_address_is_in_the_wire_page(tmp_path: Path) -> None:
    found = asyncio.run(routes_of_a_gateway(tmp_path))
    assert len(found) > 40
    text = page("wire.md")
    absent = [f"{method} {path}" for method, path in found if not re.search(rf"`{method} {re.escape(path)}[`?]", text)]
    assert absent == []


def test_every_address_of_execute_and_mcp_is_in_the_wire_page() -> None:
    expected = {"POST /execute_tool", "POST /api/v1/tools/execute", "/mcp", "/servers/{server_id}/mcp", "/register"}
    assert missing(expected, page("wire.md")) == []
    assert "/api/v1/events/tools`" in page("wire.md")


def test_every_top_level_setting_is_in_the_settings_page() -> None:
    text = page("settings.md")
    assert SETTINGS_TABLE.search(text) is not None, "the marker lines of the settings table are gone"
    assert missing({field.alias or name for name, field in Settings.model_fields.items()}, text) == []


def test_every_key_of_a_server_is_in_the_settings_page() -> None:
    own = {name for name in UpstreamSpec.model_fields if name != "type"}
    assert missing(own | WITHOUT_EFFECT | SPELLED.keys(), page("settings.md").replace(": true`", "`")) == []


def test_the_settings_named_in_the_docs_exist() -> None:
    """`limits.max_body_bytes` and its like: whatever begins with a section is a setting in it."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    wrong = []
    for written in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", written.read_text()):
            first, *rest = name.split(".")
            if (
                first in sections
                and rest not in (["json"], ["yaml"], ["toml"])
                and not _is_setting(sections[first], rest)
            ):
                wrong.append(f"{written.name}: {name}")
    assert wrong == []


def _is_setting(model: Any, rest: list[str]) -> bool:
    for part in rest:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return True  # a table's own keys
        if part not in model.model_fields:
            return False
        model = model.model_fields[part].annotation
    return True


@pytest.mark.parametrize("written", WRITTEN, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(written: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", written.read_text())):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        linked = (written.parent / name).resolve() if name else written
        if not linked.exists():
            if linked not in MADE_ELSEWHERE:
                broken.append(target)
        elif anchor and linked.suffix == ".md" and anchor not in anchors(linked):
            broken.append(target)
    assert broken == []


def anchors(markdown: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", markdown.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name.name for name in DOCS.glob("*.md") if f"(docs/{name.name}" not in readme] == []


def test_the_readme_is_short_and_names_both_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= README_LINES
    assert re.search(r"^make run\b", readme, re.MULTILINE)
    assert re.search(r"^make test\b", readme, re.MULTILINE)


def test_the_wire_page_says_first_how_to_tell_a_tools_error() -> None:
    first = page("wire.md")[:600]
    assert "success: true" in first
    assert "data.is_error" in page("wire.md")[:900]
