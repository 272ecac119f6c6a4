"""Hints: what helps code that expects a notebook, somebody who types, or packages that it has not."""

from __future__ import annotations

from mcp_servers.python_executor.engine import Job, Outcome
from mcp_servers.python_executor.packages import PackageSets

__all__ = ["with_hint"]


def with_hint(outcome: Outcome, job: Job, package_set: str | None, packages: PackageSets) -> Outcome:
    """Say in the error what helps, where the code expects a notebook, input or packages that it has not.

    Args:
        package_set: the one that the call had.
    """
    error = outcome.error
    if error is None:
        return outcome
    kind, message = error["type"], error["message"]
    if kind == "ModuleNotFoundError" and "'" in message:
        module = message.split("'")[1].split(".")[0]
        found = packages.holding(module)
        if found is not None and found != package_set:
            error["message"] += f'. It is in the package set {found!r}: pass packages=["{found}"]'
        else:
            error["message"] += f". Available: {packages.describe()}"
    elif kind in ("SyntaxError", "IndentationError") and (line := _notebook_line(job.code)):
        if line[0] == "%":
            helps = "leave it out: open figures come back by themselves"
        elif "install" in line:
            helps = f"code installs nothing: pass packages=[…]. Available: {packages.describe()}"
        else:
            helps = "code may not start programs here"
        error["message"] += f". `{line}` is a notebook's command and no Python: {helps}"
    elif kind == "NameError" and "'display'" in message:
        error["message"] += ". It is a notebook's: print the value, or let it be the last expression"
    elif kind == "EOFError" and "reading a line" in message:
        if job.asker is not None:
            error["message"] += ". Nobody types: put what it reads into the code, or into a file"
        elif job.input:
            error["message"] += ". It read more lines than `input` has"
        else:
            error["message"] += ". Nobody types: pass what it reads as `input`"
    elif kind == "FileNotFoundError" and "'" in message:
        error["message"] += ". Code sees the files that it wrote, and those that came with it as `files`"
    return outcome


def _notebook_line(code: str) -> str | None:
    """The first line that only a notebook understands, such as `!pip install x` or `%matplotlib inline`."""
    for line in code.splitlines():
        if line.lstrip()[:1] in ("!", "%") and line.strip()[1:2].isalpha():
            return line.strip()[:80]
    return None
