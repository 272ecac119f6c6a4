"""The page as files: what is built of what, how it is handed out, what it weighs; and what its own tests say."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from dashboard.types_of_api import KEPT, PAGE, types_of
from support import SERVERS, GatewayProcess, running_gateway

from toolscore.dashboard import Page
from toolscore.dashboard import build as building
from toolscore.dashboard.build import NotBuilt, build

MAX_BYTES = 350 * 1024
"""Of the whole page in gzip, all routes together."""


@pytest.mark.long
def test_its_types_are_those_of_the_api(gateway: GatewayProcess) -> None:
    document = gateway.http.get("/openapi.json").json()
    assert KEPT.read_text() == types_of(document), "make types"
    document["paths"]["/api/v1/whoami"]["get"]["responses"]["200"] = {"description": "another"}
    assert KEPT.read_text() != types_of(document), "a change is seen"


@pytest.mark.long
def test_its_own_tests_pass() -> None:
    vitest = PAGE / "node_modules" / "vitest" / "vitest.mjs"
    done = subprocess.run(
        [str(SERVERS / "node"), str(vitest), "run"], cwd=PAGE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "28 passed" in done.stdout


def test_the_lock_names_no_registry() -> None:
    lock = json.loads((PAGE / "package-lock.json").read_text())
    packages = [one for name, one in lock["packages"].items() if name]
    assert len(packages) > 100
    assert all("integrity" in one and "resolved" not in one for one in packages)


def test_it_is_light_and_split_by_route() -> None:
    build()
    packed = {file: file.stat().st_size for file in (PAGE / "dist").rglob("*.gz")}
    assert sum(packed.values()) <= MAX_BYTES
    assert len([file for file in packed if file.name.endswith(".js.gz")]) > 10
    for file in packed:
        assert gzip.decompress(file.read_bytes()) == file.with_suffix("").read_bytes(), (
            "what is packed is what is there"
        )


@pytest.mark.long
def test_it_is_built_once(tmp_path: Path) -> None:
    build()
    assert not build()
    for name in building.SOURCES:
        copy = shutil.copytree if (PAGE / name).is_dir() else shutil.copy
        copy(PAGE / name, tmp_path / name)
    (tmp_path / "node_modules").symlink_to(PAGE / "node_modules")
    assert build(tmp_path)
    assert not build(tmp_path)
    (tmp_path / "index.html").write_text((tmp_path / "index.html").read_text().replace("<title>", "<title>My "))
    assert build(tmp_path)
    assert "My ToolScore" in (tmp_path / "dist" / "index.html").read_text()
    (tmp_path / "src" / "main.tsx").write_text("import './nowhere'")
    with pytest.raises(NotBuilt, match="nowhere"):
        build(tmp_path)
    assert "My ToolScore" in (tmp_path / "dist" / "index.html").read_text(), "the old one stays"


@pytest.mark.long
def test_without_the_registry_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PAGE / name, tmp_path / name)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    with pytest.raises(NotBuilt, match="npm cannot fetch"):
        build(tmp_path)


def test_what_is_not_built_says_how_to_build_it(tmp_path: Path) -> None:
    part = Page(tmp_path).part("")
    assert part is not None
    assert part.status == 503
    assert b"toolscore.dashboard.build" in part.content
    (tmp_path / "index.html").write_text("<p>built since")
    later = Page(tmp_path).part("tools/time__now")
    assert later is not None
    assert (later.status, later.content) == (200, b"<p>built since")


def test_nothing_outside_of_it_is_handed_out(tmp_path: Path) -> None:
    inside = tmp_path / "dist"
    (inside / "assets").mkdir(parents=True)
    (inside / "index.html").write_text("the page")
    (tmp_path / "secret.txt").write_text("secret")
    (inside / "assets" / "link.js").symlink_to(tmp_path / "secret.txt")
    page = Page(inside)
    for path in ("../secret.txt", "/etc/passwd", "assets/../../secret.txt", "assets/link.js", "a\0b", "assets/gone.js"):
        part = page.part(path)
        assert part is None or part.content == b"the page", path
    assert page.part("assets/gone.js") is None


def test_how_its_files_come(gateway: GatewayProcess) -> None:
    build()
    with httpx.Client(base_url=gateway.url) as client:
        first = client.get("/", headers={"accept-encoding": "gzip"})
        assert first.status_code == 200
        assert first.headers["cache-control"] == "no-cache"
        policy = first.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        script = first.text.split('src="', 1)[1].split('"', 1)[0]
        assert script.startswith("/ui/assets/")
        packed = client.get(script, headers={"accept-encoding": "gzip"})
        plain = client.get(script, headers={"accept-encoding": "identity"})
        refused = client.get(script, headers={"accept-encoding": "gzip;q=0"})
        assert packed.headers["content-encoding"] == "gzip"
        assert "immutable" in packed.headers["cache-control"]
        assert packed.headers["content-type"] == "text/javascript; charset=utf-8"
        assert packed.text == plain.text == refused.text
        assert "content-encoding" not in plain.headers
        assert client.get("/ui/tools/some__tool").text == first.text
        assert client.get("/ui/assets/old-1234.js").json()["error"]["code"] == "invalid_request"


@pytest.mark.long
def test_it_needs_no_key_but_its_data_does() -> None:
    with running_gateway(settings="access: {local_without_key: false}") as process:
        assert process.http.get("/").status_code == 200
        assert process.http.get("/ui/tools").status_code == 200
        assert process.http.get("/api/v1/whoami").status_code == 401
