"""The options of a pool, and the configuration of a zygote that follows from them.

How the children are confined, what they may use, and what they have at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_servers.python_executor.interpreter import Interpreter

__all__ = ["CODE_ENVIRONMENT", "PACKAGE_ROOT", "PoolOptions", "zygote_config"]

PREIMPORT = (
    "abc", "array", "ast", "asyncio", "base64", "binascii", "bisect", "calendar", "codecs", "collections",
    "concurrent.futures", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum",
    "errno", "fnmatch", "fractions", "functools", "glob", "hashlib", "heapq", "hmac", "html", "inspect", "io",
    "itertools", "json", "keyword", "linecache", "locale", "math", "numbers", "operator", "os", "pathlib",
    "pickle", "pprint", "queue", "random", "re", "secrets", "select", "shlex", "shutil", "signal", "sqlite3",
    "stat", "statistics", "string", "struct", "subprocess", "tempfile", "textwrap", "threading", "time",
    "timeit", "traceback", "types", "typing", "unicodedata", "urllib.parse", "uuid", "warnings", "weakref",
    "zlib", "zoneinfo", "encodings.idna", "encodings.ascii", "encodings.latin_1",
)  # fmt: skip
CODE_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/box/tmp",
    "TMPDIR": "/box/tmp",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "agg",
    "MPLCONFIGDIR": "/box/tmp",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""The whole environment of user code. Numeric libraries start no threads: a zygote must have one only when it forks."""
PACKAGE_ROOT = Path(__file__).parents[2]
SANDBOX = Path(__file__).parent / "sandbox"


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How a pool's children are confined, and what they have at hand.

    Args:
        interpreter: the sandbox's Python; `None`: the one that runs us.
        cache: where a helper compiled for another Python is kept.
        packages: a folder of packages, read-only for the code; `None`: the standard library alone.
        reachable: a folder that the code may read, though it imports nothing from it unless its path says so.
        preload: modules to import before the first call. If one cannot be imported, the pool does not start.
        libraries: folders of packages to preload from, which the code does not see.
        memory_bytes: what a call may use beyond what the zygote has.
        scratch_bytes: bound on the files of a call, in `/tmp` and the working folder together.
        file_bytes: bound on one file, and so on stdout and on stderr.
        max_processes: bound on the processes and threads of a call.
        max_open_files: bound on the descriptors of a call.
        allow_processes: whether the code may start processes of its own.
        children: how many may live at a time.
        fresh: replace each child by a new interpreter.
        min_tier: refuse to start below this tier (`A` … `E`, see `sandbox/layers.py`).
        use_helper, huge_pages, use_cgroups: off for tests, and for machines where they do harm.
        generation_calls: a zygote is replaced after so many forks. Its children share its address layout and its hash
            seed, and at tier A each slot that was written to leaves a Landlock rule behind.
        generation_seconds: a zygote is replaced at this age.
    """

    interpreter: str | None = None
    cache: Path | None = None
    packages: str | None = None
    reachable: str | None = None
    preload: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    memory_bytes: int = 512 << 20
    scratch_bytes: int = 64 << 20
    file_bytes: int = 16 << 20
    max_processes: int = 64
    max_open_files: int = 256
    allow_processes: bool = False
    children: int = 40
    fresh: bool = False
    min_tier: str = "C"
    use_helper: bool = True
    huge_pages: bool = True
    use_cgroups: bool = True
    generation_calls: int = 20_000
    generation_seconds: float = 3600.0


def zygote_config(
    options: PoolOptions, interpreter: Interpreter, folder: str, cgroups: list[list[int]]
) -> dict[str, Any]:
    """Return what a zygote is told when it starts; `sandbox/zygote.py` reads it.

    Args:
        options: of the pool.
        interpreter: the sandbox's Python, looked over.
        folder: the zygote's scratch folder.
        cgroups: for each slot, the descriptors that a child writes its own number into; -1: none.
    """
    more = [path for path in (options.packages, options.reachable) if path]
    if options.fresh:
        package = PACKAGE_ROOT / "mcp_servers"
        more += [interpreter.command, str(SANDBOX)]
        more += [str(path) for path in (package / "__init__.py", package / "python_executor" / "__init__.py")]
    return {
        "min_tier": options.min_tier,
        "helper": str(interpreter.helper) if options.use_helper and interpreter.helper else None,
        "huge_pages": options.huge_pages,
        "source": str(SANDBOX / "child.py"),
        "stdlib": list(interpreter.stdlib),
        "packages": [options.packages] if options.packages else [],
        "visible": interpreter.visible(programs=options.allow_processes, more=tuple(more)),
        "preimport": [] if options.fresh else PREIMPORT,
        "require": list(options.preload),
        "libraries": [str(Path(path).parent) for path in options.libraries],
        "environment": CODE_ENVIRONMENT,
        "scratch": folder,
        "scratch_bytes": options.scratch_bytes,
        "memory_bytes": options.memory_bytes,
        "file_bytes": options.file_bytes,
        "max_processes": options.max_processes,
        "max_open_files": options.max_open_files,
        "processes": options.allow_processes,
        "fresh": options.fresh,
        "cgroups": cgroups,
    }
