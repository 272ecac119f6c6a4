"""`toolscore bench peers`: all are measured alike, and one that does not install, start or hold out is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from toolscore.bench import peers
from toolscore.bench.peers import Backend, Door, Peer, run_peers_bench


def echo(home: Path, files: Path, port: int, backend: Backend) -> list[str]:
    """A peer of no cost: a server in the place of one that stands before it."""
    return [sys.executable, "-m", "toolscore.bench.echo", "mcp", str(port)]


def broken(home: Path, files: Path, port: int, backend: Backend) -> list[str]:
    return [sys.executable, "-c", "import sys; sys.exit('no module named it')"]


@pytest.mark.long
def test_peers_are_measured_and_those_that_fail_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door = [Door("MCP", "/mcp")]
    known = (
        Peer("echo", "pypi", ["echo==1"], ("http",), door, echo),
        Peer("broken", "pypi", ["broken==1"], ("stdio",), door, broken),
        Peer("nowhere", "npm", ["./nowhere.tgz"], ("http",), door, echo),
    )
    monkeypatch.setattr(peers, "PEERS", known)
    monkeypatch.setattr(peers, "ROUNDS", 1)
    for name in ("echo==1", "broken==1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".installed").write_text(name)
    said: list[str] = []
    report = run_peers_bench(tmp_path, seconds=0.6, quiet=True, tell=said.append, picture=tmp_path / "picture.svg")
    rows = {(row["peer"], row["door"], row["backend"]): row for row in report["results"]}
    ours = {("ToolScore", door, backend) for door in ("REST", "MCP") for backend in ("http", "stdio")}
    assert rows.keys() == ours | {("echo", "MCP", "http")}, report["left_out"]
    assert all(row["calls_per_second"] > 0 and row["p50_ms"] > 0 for row in rows.values())
    assert rows["ToolScore", "REST", "http"]["memory_mb"] > 20
    assert report["left_out"]["broken, stdio"] == "it ended (1): no module named it"
    assert "could not be installed: npm: ENOENT" in report["left_out"]["nowhere"]
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    assert any("installing ./nowhere.tgz" in one for one in said)
