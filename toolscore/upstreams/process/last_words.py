"""Which line of a failed program's output says why it failed: seldom the last one, and often hidden in a stack."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["cause_of", "hint_for"]

MAX_CAUSE = 300

NPM = re.compile(r"npm (?:error|ERR!) ?(.*)")
NPM_NOISE = re.compile(
    r"(?:code|syscall|path|errno|dest|file|command|signal|cwd|node|prefix|enoent|\d{3})?\s*$"
    r"|(?:code|syscall|path|errno|dest|file|signal|cwd) \S|command (?:failed|sh|git)"
    r"|(?:\S+ )?(?:A complete log|This is related to npm)"
)
NPM_CODE = re.compile(r"(?:e[a-z]+|notarget) (?=[A-Z])")
SAID = re.compile(r"(?:error|ERROR|Error|fatal|FATAL): \S.*|\S+: (?:error|fatal): .*")
PYTHON = re.compile(
    r"[\s|+]*((?:\w+\.)*\w*(?:Error|Exception|Exit|NotFound|Refused|Failure|Timeout|Interrupt)(?::.*)?)$"
)
NODE = re.compile(r"\s*(?:Uncaught )?(\w*Error(?: \[\w+\])?: .+)")
GROUP = re.compile(r"(?:\w+\.)*(?:Base)?ExceptionGroup\b")
TELLING = re.compile(
    r"\b(?:error|fatal|failed|cannot|can't|could not|missing|required|requires|not found|denied|invalid|unable|must)\b",
    re.IGNORECASE,
)
NOISE = re.compile(r"\s|\[|Traceback |Node\.js v|npm (?:notice|warn|WARN)|\^+$|[{}()\[\];,]+$|node:internal|file://")
"""How lines begin that say nothing of the cause."""

ARGUMENTS = re.compile(
    r"arguments are required|Missing (?:option|argument|required)|missing required argument|^Usage:|usage: ",
    re.IGNORECASE,
)
OLD_SDK = re.compile(
    r"(?:ImportError|ModuleNotFoundError): (?:No module named 'mcp\.(?!server\.mcpserver)"
    r"|cannot import name '(?!MCPServer'|Client')\w+' from 'mcp[.'])"
)
"""What SDK 1.x had and 2.x has not; not the other way round."""
PROGRAM = re.compile(
    r"No such file or directory: '([^'/]+)'|spawn (\S+) ENOENT|(?:^|: )(\S+): (?:command )?not found"
    r"|executable file not found in \$PATH: (\S+)"
)


def cause_of(lines: Iterable[str]) -> str | None:
    """The line that says why a program failed, as well as can be told; `None`: it said nothing.

    Args:
        lines: the last ones that it printed, the oldest first.
    """
    said = [line.rstrip() for line in lines if line.strip()]
    found = _of_npm(said) or _of_resolver(said) or _of_python(said) or _last(NODE, said) or _last(SAID, said)
    if found is None:
        plain = [line for line in said if not NOISE.match(line)] or said
        telling = [line for line in plain if TELLING.search(line)]
        found = (telling or plain)[-1] if plain else None
    return found.strip()[:MAX_CAUSE] if found is not None else None


def hint_for(cause: str | None) -> str | None:
    """What mends it, where the cause that `cause_of` found says so plainly."""
    if cause is None:
        return None
    if OLD_SDK.match(cause):
        return "it was written for an older SDK: run it with mcp<2 (`uvx --with 'mcp<2' …`)"
    missing = PROGRAM.search(cause)
    if missing is not None:
        return f"install the program {next(name for name in missing.groups() if name)!r}, which it starts"
    if ARGUMENTS.search(cause):
        return "it wants arguments on its command line: give them (`args` of its entry, `--arg` of an install)"
    return None


def _of_npm(said: Sequence[str]) -> str | None:
    told = [found[1].strip() for line in said if (found := NPM.match(line))]
    telling = [line for line in told if not NPM_NOISE.match(line)]
    built = next((line for line in telling if re.search(r"\berror\b", line, re.IGNORECASE)), None)
    return f"npm: {NPM_CODE.sub('', built or telling[0])}" if telling else None


def _of_resolver(said: Sequence[str]) -> str | None:
    """uv's way: what failed, and behind `cause:` or `╰─▶` why, over several lines."""
    for number, line in enumerate(said):
        head, arrow, why = line.partition("╰─▶" if "╰─▶" in line else "  cause: ")
        if arrow and not head.strip():
            more = []
            for further in said[number + 1 :]:
                if not further.startswith("   "):
                    break
                more.append(further.strip())
            return " ".join([why.strip(), *more])
    return None


def _of_python(said: Sequence[str]) -> str | None:
    """The exception of the last traceback; of a group of them the innermost."""
    if not any("Traceback (most recent call last)" in line for line in said):
        return None
    raised = [found[1] for line in said if (found := PYTHON.match(line))]
    alone = [line for line in raised if not GROUP.match(line)]
    return (alone or raised or [None])[-1]


def _last(pattern: re.Pattern[str], said: Sequence[str]) -> str | None:
    """The last line that begins so: a program that ran for long has told of other things before."""
    found = next((found for line in reversed(said) if (found := pattern.match(line))), None)
    return found[found.lastindex or 0] if found is not None else None
