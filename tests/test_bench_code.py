"""The benchmark of code that calls tools, with the five real servers: every task has its right answer both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import SERVERS

from toolscore.bench.code import run_code_bench
from toolscore.bench.code_channel import run_channel_bench
from toolscore.core.models import UpstreamSpec

pytestmark = pytest.mark.long

NPM = SERVERS / "npm" / "node_modules" / ".bin"


def installed(folder: Path) -> dict[str, UpstreamSpec]:
    node = str(SERVERS / "node")
    return {
        "time": UpstreamSpec(command=str(SERVERS / "current/bin/mcp-server-time"), args=("--local-timezone", "UTC")),
        "git": UpstreamSpec(command=str(SERVERS / "current/bin/mcp-server-git")),
        "sqlite": UpstreamSpec(
            command=str(SERVERS / "sdk1/bin/mcp-server-sqlite"), args=("--db-path", str(folder / "shop.db"))
        ),
        "filesystem": UpstreamSpec(command=node, args=(str(NPM / "mcp-server-filesystem"), str(folder))),
        "memory": UpstreamSpec(
            command=node, args=(str(NPM / "mcp-server-memory"),),
            env={"MEMORY_FILE_PATH": str(folder / "memory.json")},
        ),
    }  # fmt: skip


def test_code_gives_the_right_answers_for_fewer_tokens(tmp_path: Path) -> None:
    report = run_code_bench(servers=installed, picture=tmp_path / "code.svg", quiet=True)
    wrong = {task["name"]: task["said"] for task in report["tasks"] if not task["right"]}
    assert not wrong
    assert len(report["tasks"]) == 20
    assert all(3 <= task["calls"] <= 30 for task in report["tasks"]), report["tasks"]
    assert report["once"]["ratio"] < 0.5
    assert report["turns"]["ratio"] < 0.2
    assert (tmp_path / "code.svg").stat().st_size > 1000


def test_the_channel_is_measured_in_both_places() -> None:
    report = run_channel_bench(rounds=1, quiet=True)
    for figures in report.values():
        assert 0 < figures["pipeline_p50_ms"] < figures["inner_p50_ms"], report
        assert figures["one_by_one_s"] > 0
        assert figures["ratio"] > 0
