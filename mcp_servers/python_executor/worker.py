"""Runs one piece of code in this process, which nobody used before and which ends with it. Standard library only.

Started with `-I -S` and the number of a descriptor. On stdin: the job as JSON. On the descriptor: one JSON frame with
what came of it. stdout and stderr belong to the code.
"""

import ast
import io
import json
import linecache
import os
import resource
import signal
import sys
import traceback
from typing import Any

FILENAME = "<code>"
MAX_RESULT_CHARS = 100_000
PR_SET_PDEATHSIG = 1


def confine(job: dict[str, Any]) -> None:
    """Bounds that the code cannot raise again, and death with the server."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != job["parent"]:
            os._exit(1)  # the server died before we could ask to die with it
    memory, seconds = job["memory_bytes"], int(job["timeout_seconds"]) + 2
    for kind, bound in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, job["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        resource.setrlimit(kind, (bound, bound))


def run(code: str) -> dict[str, Any]:
    """Execute; the value of a last expression is the result, as a notebook shows it."""
    linecache.cache[FILENAME] = (len(code), None, code.splitlines(keepends=True), FILENAME)
    namespace = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        tree = ast.parse(code, FILENAME)
        last = None
        if tree.body and isinstance(ending := tree.body[-1], ast.Expr):
            tree.body.pop()
            last = ast.Expression(ending.value)
        exec(compile(tree, FILENAME, "exec"), namespace)  # noqa: S102
        value = eval(compile(last, FILENAME, "eval"), namespace) if last is not None else None  # noqa: S307
        return {"exit": "ok", "result": shown(value), "error": None}
    except SystemExit as exc:
        if exc.code in (None, 0):
            return {"exit": "ok", "result": None, "error": None}
        return failed(exc, f"the code called sys.exit({exc.code!r})")
    except MemoryError as exc:
        return {**failed(exc, str(exc) or "out of memory"), "exit": "memory"}
    except BaseException as exc:  # whatever the code raises is its result
        return failed(exc, str(exc))


def shown(value: object) -> str | None:
    if value is None:
        return None
    try:
        text = repr(value)
    except BaseException as exc:  # a repr of the code's own
        text = f"<{type(value).__name__} whose repr failed: {type(exc).__name__}>"
    return text if len(text) <= MAX_RESULT_CHARS else text[:MAX_RESULT_CHARS] + "…"


def failed(exc: BaseException, message: str) -> dict[str, Any]:
    """The error with the code's own lines; ours are left out."""
    frames = traceback.TracebackException.from_exception(exc, compact=True)
    own = [index for index, frame in enumerate(frames.stack) if frame.filename == FILENAME]
    frames.stack = traceback.StackSummary.from_list(frames.stack[own[0] :] if own else [])
    text = "".join(frames.format())
    return {
        "exit": "error",
        "result": None,
        "error": {"type": type(exc).__name__, "message": message[:10_000], "traceback": text[-50_000:]},
    }


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    given = job["input"].encode("utf-8", "surrogatepass")
    sys.stdin = io.TextIOWrapper(io.BytesIO(given), "utf-8", "replace")
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    confine(job)
    answer = os.fdopen(int(sys.argv[1]), "wb")
    os.set_inheritable(answer.fileno(), False)
    sys.argv = [""]
    outcome = run(job["code"])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # closed by the code
    answer.write(json.dumps(outcome).encode() + b"\n")
    answer.close()
    os._exit(0)  # no finalisers of the code's objects: nothing of it runs any more


main()
