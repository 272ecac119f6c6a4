"""`toolscore bench isolation`: what passes from one caller to the next, for each engine, found out by trying.

Each aspect is tried with a few probes. A probe is two pieces of code: one leaves something behind, the other looks at
the state. If the next caller sees another state than before, something was passed on. So an engine is judged by what
is seen, and never by what it claims.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mcp_servers.python_executor.engine import ENGINES, Engine, Job, PoolEngine
from mcp_servers.python_executor.executor import Executor
from mcp_servers.python_executor.pool import SandboxUnavailable

__all__ = ["PROBES", "SESSION", "SESSION_OF_ANOTHER", "Probe", "measure_isolation", "run_isolation"]

Run = Callable[[str], Awaitable[str | None]]

SESSION = "session"
SESSION_OF_ANOTHER = "others' session"
COLUMNS = {
    **ENGINES,
    SESSION: "the same session_id again, by the same principal: it keeps everything, as it is meant to",
    SESSION_OF_ANOTHER: "the same session_id, used by two principals",
}


@dataclass(frozen=True)
class Probe:
    """One caller runs `leave`; the next runs `look`, an expression. If its value changed, something was passed on."""

    aspect: str
    name: str
    leave: str
    look: str


_NAMES = "sorted(name for name in globals() if name.startswith('left'))"

PROBES = (
    Probe("local variables", "a variable", "left_variable = 1", _NAMES),
    Probe("functions", "a function", "def left_function():\n    return 1", _NAMES),
    Probe("classes", "a class", "class left_class:\n    pass", _NAMES),
    Probe(
        "exceptions",
        "a raised exception",
        "left = []\nraise ValueError('left behind', left)",
        "[type(o) for o in __import__('gc').get_objects() "
        "if isinstance(o, BaseException) and o.args[:1] == ('left behind',)]",
    ),
    Probe(
        "imported modules", "a new module", "import colorsys", "'colorsys' in __import__('sys').modules"
    ),
    Probe(
        "imported modules",
        "a patched module",
        "import json\njson.dumps = lambda *a, **k: 'left'",
        "__import__('json').dumps([1])",
    ),
    Probe("`sys` changes", "sys.path", "import sys\nsys.path.append('/left')", "'/left' in __import__('sys').path"),
    Probe(
        "`sys` changes",
        "the recursion limit",
        "import sys\nsys.setrecursionlimit(4321)",
        "__import__('sys').getrecursionlimit()",
    ),
    Probe(
        "globals",
        "a name in __main__",
        "import __main__\n__main__.left_global = 1",
        "hasattr(__import__('__main__'), 'left_global')",
    ),
    Probe(
        "open files",
        "a descriptor",
        "import os\nfor _ in range(5): os.open('/dev/null', os.O_RDONLY)",
        "(lambda os: [(fd, os.close(fd)) for fd in [os.dup(0)]])(__import__('os'))",
    ),
    Probe(
        "memory growth",
        "a hundred thousand lists",
        "left = [[] for _ in range(100_000)]\nimport json\njson.left = left",
        "len(__import__('gc').get_objects()) // 50_000",
    ),
    Probe(
        "environment",
        "a variable",
        "import os\nos.environ['LEFT'] = '1'",
        "__import__('os').environ.get('LEFT', 'not set')",
    ),
    Probe("working directory", "a file", "open('left', 'w').close()", "__import__('os').path.exists('left')"),
    Probe("working directory", "chdir", "import os\nos.chdir('/')", "__import__('os').getcwd() == '/'"),
    Probe(
        "signal handlers",
        "SIGUSR1",
        "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)",
        "str(__import__('signal').getsignal(10))[:9]",
    ),
    Probe(
        "threads",
        "a thread that stays",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(20,), daemon=True).start()",
        "__import__('threading').active_count()",
    ),
    Probe("builtins", "a new name", "import builtins\nbuiltins.left = 1", "hasattr(__import__('builtins'), 'left')"),
    Probe("builtins", "a patched one", "import builtins\nbuiltins.sorted = lambda *a: 'left'", "sorted([2, 1])"),
)  # fmt: skip


async def measure_isolation(
    engines: Sequence[str] = (), *, on_progress: Callable[[str, int, int], None] | None = None, **options: Any
) -> dict[str, Any]:
    """Try every probe on every engine, and with sessions.

    Args:
        engines: which; all that run here if empty.
        options: of the executor.

    Returns:
        `matrix`: aspect → column → names of the probes that passed on; `columns`: column → what it is;
        `skipped`: engine → why it does not run here.
    """
    wanted = engines or tuple(ENGINES)
    matrix: dict[str, dict[str, list[str]]] = {probe.aspect: {} for probe in PROBES}
    skipped: dict[str, str] = {}
    columns = [*wanted, *((SESSION, SESSION_OF_ANOTHER) if "fork" in wanted else ())]
    for number, column in enumerate(columns):
        engine = column if column in ENGINES else "fork"
        try:
            if on_progress is not None:
                on_progress(column, number, len(columns))
            async with Executor(engine=engine, **options) as executor:
                for probe in PROBES:
                    found = matrix[probe.aspect].setdefault(column, [])
                    if await _try(executor, column, probe):
                        found.append(probe.name)
        except SandboxUnavailable as exc:
            skipped[column] = str(exc)
    return {
        "matrix": matrix,
        "columns": {column: COLUMNS[column] for column in columns if column not in skipped},
        "skipped": skipped,
    }


async def _try(executor: Executor, column: str, probe: Probe) -> bool:
    """Whether the second caller sees what the first one left."""

    async def run(code: str, principal: str) -> str | None:
        session = "work" if column in (SESSION, SESSION_OF_ANOTHER) else None
        return (await executor.execute(code, session_id=session, principal=principal)).result

    async def look(principal: str) -> str | None:
        if column != "restricted":
            return await run(probe.look, principal)
        engine = await executor.ready_engine("restricted")  # whose language cannot look
        assert isinstance(engine, PoolEngine)
        plain: Engine = PoolEngine("look", engine.pool)
        return (await plain.run(Job(probe.look))).result

    second = "second" if column == SESSION_OF_ANOTHER else "first"
    before = await look(second)
    if before is None:
        raise RuntimeError(f"{probe.aspect}, {probe.name}: the probe found nothing to look at")
    await run(probe.leave, "first")
    return await look(second) != before


def run_isolation(*, engines: Sequence[str] = (), quiet: bool = False, **options: Any) -> dict[str, Any]:
    """Measure, and print the matrix unless `quiet`."""
    from rich.console import Console

    if quiet:
        return asyncio.run(measure_isolation(engines, **options))
    console = Console(stderr=True)
    with console.status("starting") as status:

        def tell(column: str, number: int, count: int) -> None:
            status.update(f"trying {column} ({number + 1} of {count})")

        result = asyncio.run(measure_isolation(engines, on_progress=tell, **options))
    _print(Console(), result)
    return result


def _print(console: Any, result: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    columns = result["columns"]
    table = Table("passes on", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for column in columns:
        table.add_column(column, justify="center", min_width=max(map(len, column.split())))
    tried: dict[str, int] = {}
    for probe in PROBES:
        tried[probe.aspect] = tried.get(probe.aspect, 0) + 1
    partly: dict[str, dict[str, None]] = {}
    for aspect, cells in result["matrix"].items():
        row = []
        for column in columns:
            passed = cells[column]
            if passed and len(passed) < tried[aspect]:
                partly.setdefault(column, {}).update(dict.fromkeys(passed))
                row.append("[yellow]partly[/]")
            else:
                row.append("[red]YES[/]" if passed else "[green]no[/]")
        table.add_row(aspect, *row)
    console.print(table)
    for column, what in columns.items():
        console.print(f"  [bold]{column}[/]: {what}")
    for column, names in partly.items():
        console.print(f"  [bold]{column}[/], where it says partly, passes on {', '.join(names)}")
    for engine, why in result["skipped"].items():
        console.print(f"  [bold]{engine}[/] does not run here: {why.splitlines()[0]}", style="yellow")
