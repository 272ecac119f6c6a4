"""Fixtures: gateways."""

from __future__ import annotations

import functools
import gc
import inspect
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler.loadscope import LoadScopeScheduling

gc.disable()  # until all tests are collected: what is loaded stays

sys.path.insert(0, str(Path(__file__).parent))

from support import ROOT, GatewayProcess, odd, running_gateway, start_nursery  # noqa: E402

# Machines are slow at times: that is no fault of what is tested. httpx would give up after five seconds.
for kind in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, kind, 120.0)
# Each client would read all certificates that the machine trusts: more work than most of what is asked with it.
httpx._transports.default.create_ssl_context = functools.cache(httpx._transports.default.create_ssl_context)
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """Have the gateways' lines counted, too, if lines are counted at all; and Ctrl-C be what it is in a terminal.

    A shell's background job ignores it, and so would all that the tests start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--cov", None):
        os.environ["TEST_COVERAGE"] = str(ROOT / ".cache/coverage/lines")
    if config.getoption("numprocesses", None) and config.getoption("markexpr") != "fast":
        start_nursery()  # one for all of them


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Have the collector walk what the tests make, and not the tests."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def gateway() -> Iterator[GatewayProcess]:
    """One gateway with well-behaved servers, for tests that leave it as they found it."""
    with running_gateway(
        {name: odd(name if name == "many" else "echo") for name in ("alpha", "beta", "many")}, journal=True, python=True
    ) as process:
        for server_id in ("alpha", "beta", "many"):
            process.wait_for_state(server_id, "up")
        yield process


STARTERS = frozenset(
    {"running_gateway", "executor_process", "toolscore", "with_config", "debian_package", "forked", "fixture", "Popen",
     "SERVERS", "Registries", "run_suite", "getfixturevalue"}
)  # fmt: skip
"""Whoever uses one of these starts a process, or needs what the network brought."""


class _ByModule(LoadScopeScheduling):
    """Deals tests out one by one, but those together that share a fixture of their module."""

    def _split_scope(self, nodeid: str) -> str:
        return _dealt_with(nodeid)


@functools.cache
def _shares(path: str) -> bool:
    return 'scope="module"' in (ROOT / path).read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByModule:
    return _ByModule(config, log)


def _dealt_with(nodeid: str) -> str:
    """What a test is dealt out with: the tests of its module, if they share a fixture."""
    path = nodeid.partition("::")[0]
    return path if _shares(path) else nodeid


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long tests first, so that none of them runs alone at the end; mark the short without a process.

    Tests that share a fixture of their module stay in its order.
    """
    for item in items:
        assert isinstance(item, pytest.Function)
        fixtures = [one[-1] for one in item._fixtureinfo.name2fixturedefs.values()]
        sandboxed = "mcp_servers" in item.path.parts  # its processes are what is tested there
        functions = (item.function, *(one.func for one in fixtures))
        is_long = item.get_closest_marker("long") is not None
        if not is_long and not sandboxed and not any(_reaches(function, set()) for function in functions):
            item.add_marker(pytest.mark.fast)
    begun = {_dealt_with(item.nodeid) for item in items if item.get_closest_marker("long") is not None}
    items.sort(key=lambda item: _dealt_with(item.nodeid) not in begun)


def _reaches(function: Any, seen: set[Any]) -> bool:
    """Whether a function, or one of its module that it calls, names a starter."""
    function = inspect.unwrap(function) if callable(function) else function
    code = getattr(function, "__code__", None)
    if code is None or code in seen:
        return False
    seen.add(code)
    names = _names(code)
    module = getattr(function, "__globals__", {})
    return bool(names & STARTERS) or any(_reaches(module.get(name), seen) for name in names)


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names, *code.co_freevars}.union(*map(_names, inner))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests recorded."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, figures in report.user_properties:
            terminalreporter.write_line(f"{name}: {figures}")
