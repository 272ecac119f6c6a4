"""What the repository promises of itself."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import BaseModel
from support import ROOT

import mcp_servers
import runtimes
import toolscore
from toolscore.app import pages
from toolscore.app.settings import Settings

TOP = {
    "pyproject.toml", "build_hook.py", "requirements.lock", "Makefile", "README.md", "ARCHITECTURE.md",
    "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", ".ci",
    "toolscore", "runtimes", "mcp_servers", "config", "deploy", "docs", "tests",
}  # fmt: skip
MAX_LINES = 400


def modules() -> list[str]:
    names = []
    for package in (toolscore, runtimes, mcp_servers):
        names.append(package.__name__)
        names += [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    not_importable = ("reaper", "sandbox.fresh", "_forkserver", "__main__", "migrations.env")  # programs, not modules
    return [name for name in names if not name.endswith(not_importable)]


def test_the_top_level_is_exactly_what_it_should_be() -> None:
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
    top = {path.split("/")[0] for path in tracked}
    assert {name for name in top if not name.startswith(".") or name == ".ci"} == TOP


@pytest.mark.parametrize("name", modules())
def test_all_is_true(name: str) -> None:
    """`__all__` names what is there, once each, in order: constants, classes, functions."""
    module: ModuleType = importlib.import_module(name)
    tree = ast.parse(Path(inspect.getfile(module)).read_text())
    listed = getattr(module, "__all__", None)
    if listed is None:
        assert len(tree.body) <= 1, f"{name} has code and no __all__"
        return
    assert all(hasattr(module, entry) for entry in listed)
    assert len(set(listed)) == len(listed)
    assert list(listed) == sorted(listed, key=_in_order), name


def _in_order(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_every_import_between_modules_is_in_all() -> None:
    wrong = []
    for path in [*ROOT.glob("toolscore/**/*.py"), *ROOT.glob("runtimes/**/*.py"), *ROOT.glob("mcp_servers/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
                "toolscore",
                "runtimes",
                "mcp_servers",
            ):
                module = importlib.import_module(str(node.module))
                wrong += [
                    f"{path.relative_to(ROOT)}: {node.module}.{alias.name}"
                    for alias in node.names
                    if alias.name not in getattr(module, "__all__", ())
                    and not isinstance(getattr(module, alias.name, module), ModuleType)
                ]
    assert wrong == []


def test_the_package_the_command_and_the_changelog_agree_on_the_version() -> None:
    newest = re.search(r"^## (\S+) \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == toolscore.__version__
    assert importlib.metadata.version("toolscore") == toolscore.__version__


def test_the_floors_of_the_page_are_those_that_are_kept() -> None:
    table = re.findall(r"^\| (\d+) \| (`[^|]+) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    shown = [(int(floor), set(re.findall(r"`(\w+)`", rooms))) for floor, rooms in table]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    kept = [set(layer.split(" | ")) for layer in contracts[0]["layers"] if layer != "__main__"]
    assert [rooms for _, rooms in shown] == kept
    assert [floor for floor, _ in shown] == list(range(len(kept), 0, -1))


def test_a_long_module_says_why_it_is_one() -> None:
    """Over 400 lines, the docstring has a paragraph that begins with "One module"."""
    tracked = subprocess.check_output(["git", "ls-files", "toolscore", "runtimes", "mcp_servers"], cwd=ROOT, text=True)
    long = [path for path in tracked.split() if path.endswith(".py") and _lines(path) > MAX_LINES]
    assert [path for path in long if "One module" not in (ast.get_docstring(_tree(path)) or "")] == []


def _lines(path: str) -> int:
    return len((ROOT / path).read_text().splitlines())


def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def test_the_locks_have_hashes_and_name_no_index() -> None:
    for lock in ("requirements.lock", "tests/requirements.lock"):
        text = (ROOT / lock).read_text()
        assert "http://" not in text
        assert "https://" not in text
        assert text.count("--hash=sha256:") > 50


def test_what_is_shown_of_the_settings_is_what_the_classes_say() -> None:
    assert (ROOT / "config" / "toolscore.yaml").read_text() == pages.settings_yaml()
    page = (ROOT / "docs" / "settings.md").read_text()
    assert pages.settings_table() in page[page.index(pages.BEGIN) : page.index(pages.END)]


def test_the_defaults_shown_in_config_are_the_defaults() -> None:
    text = (ROOT / "config" / "toolscore.yaml").read_text()
    bare = "\n".join(line[2:] for line in text.splitlines() if re.match(r"# {1,5}\w+:", line))
    shown = {key: value for key, value in yaml.safe_load(bare).items() if isinstance(value, dict)}
    assert shown.keys() == {name for name, field in Settings.model_fields.items() if name not in pages.ELSEWHERE}
    assert Settings(**shown) == Settings()
    ports = yaml.safe_load((ROOT / "config" / "ports_config.yaml").read_text())
    assert Settings(**ports) == Settings()


def test_every_setting_says_what_it_does() -> None:
    silent = []

    def walk(model: type[BaseModel], path: str) -> None:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                walk(field.annotation, f"{path}{name}.")
            elif not field.description and name not in ("enabled", "host", "upstreams"):
                silent.append(f"{path}{name}")

    walk(Settings, "")
    assert silent == []


HEAVY = ("numpy", "wordllama", "drain3", "cryptography", "snowballstemmer", "opentelemetry.sdk", "alembic", "redis",
         "sqlalchemy.orm", "sqlalchemy.dialects.postgresql", "tokenizers", "mcp", "httpx")  # fmt: skip


@pytest.mark.parametrize(
    ("program", "not_needed"),
    [
        ("toolscore.endpoints.app", (*HEAVY, "fastapi")),
        ("toolscore.history.recorder", (*HEAVY, "fastapi", "pydantic", "aiohttp", "rich", "yaml")),
    ],
)
@pytest.mark.long
def test_what_is_not_needed_at_a_start_is_not_loaded(program: str, not_needed: tuple[str, ...]) -> None:
    """Each takes time at a start and memory for ever."""
    code = f"import sys, {program}; print(*sys.modules)"
    loaded = {*subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()}
    assert program in loaded
    assert loaded & {*not_needed} == set()


@pytest.mark.long
def test_who_wants_sessions_of_sqlalchemy_gets_them() -> None:
    """Our engine is loaded without them; what is asked for later is the real thing."""
    code = (
        "import toolscore.stores.database, sqlalchemy.ext.asyncio as package\n"
        "assert not hasattr(package, 'AsyncSession')\n"
        "from sqlalchemy.ext.asyncio.session import AsyncSession\n"
        "from sqlalchemy.orm import Session\n"
        "session = AsyncSession(package.create_async_engine('sqlite+aiosqlite://'))\n"
        "assert isinstance(session.sync_session, Session)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_no_registry_is_named_in_the_repository() -> None:
    hosts = re.compile(r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian")
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
    named = [
        path
        for path in tracked
        if path != "tests/test_structure.py" and hosts.search((ROOT / path).read_text(errors="replace"))
    ]
    assert named == []
