"""What this machine gives the sandbox: each layer tried, the helper, and how fast it starts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mcp_servers.python_executor.options import PoolOptions
from mcp_servers.python_executor.pool import Pool, SandboxUnavailable
from mcp_servers.python_executor.sandbox.wire import Request, encode_request

__all__ = ["examine", "show"]

MAX_OUTPUT_BYTES = 1000

MEANINGS = {
    "A": "all layers, and a user id for each call",
    "B": "all layers, with one user id for all calls",
    "C": "Landlock and seccomp, without namespaces: a call's files are added up, four times a second",
    "D": "seccomp only: files could be read. Code is not run at this tier",
    "E": "nothing. Code is not run at this tier",
}
MENDS = {
    "user_ids": "run as root, or in a container with CAP_SETUID",
    "namespaces": "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1, or docker run --security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined",
    "landlock": "Linux 5.13 or later with lsm=landlock",
    "seccomp": "Linux on x86-64 or AArch64",
    "cgroups": "delegate a control group (systemd: Delegate=yes); needed only with allow_processes",
    "helper": "install gcc and the Python headers; until then calls cost twice as much",
}


async def examine(data_dir: Path, interpreter: str | None) -> dict[str, Any]:
    """Start a sandbox, run one call in it, and say what it is made of.

    Returns:
        `tier`, `meaning`, `layers` (name → ok, detail, mend), `python`, `ready_ms`, `first_call_ms`;
        `error` if it did not start.
    """
    options = PoolOptions(interpreter=interpreter, cache=data_dir.absolute() / "python", children=4)
    async with Pool(options) as pool:
        try:
            began = time.perf_counter()
            await pool.ready()
            ready = time.perf_counter()
            child = await pool.take()
            ending = await child.call(encode_request(Request(b"1 + 1")), 10, MAX_OUTPUT_BYTES)
            child.release(kill=True)
            ended = time.perf_counter()
            about = pool.about
        except SandboxUnavailable as exc:
            refused = {"tier": exc.tier, "meaning": MEANINGS[exc.tier], "layers": _with_mends(exc.layers)}
            return refused if exc.layers else {**refused, "error": str(exc)}
    layers = _with_mends(about["layers"])
    layers["helper"] = {
        "ok": not about["slow_path"],
        "detail": f"slow path: {about.get('slow_path_reason')}" if about["slow_path"] else "the C fork server",
        **({"mend": MENDS["helper"]} if about["slow_path"] else {}),
    }
    found = {
        "tier": about["tier"],
        "meaning": MEANINGS[about["tier"]],
        "layers": layers,
        "python": about["python"],
        "ready_ms": round((ready - began) * 1000, 1),
        "first_call_ms": round((ended - ready) * 1000, 2),
    }
    if ending.answer is None or ending.answer.result != "2":
        found["error"] = "the sandbox started, and 1 + 1 did not run in it"
    return found


def _with_mends(layers: dict[str, Any]) -> dict[str, Any]:
    return {name: layer if layer["ok"] else {**layer, "mend": MENDS.get(name)} for name, layer in layers.items()}


def show(found: dict[str, Any]) -> None:
    """Print it for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]tier {found['tier']}[/bold]: {found['meaning']}")
    if "error" in found:
        console.print(f"[red]{found['error']}[/red]")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, layer in found["layers"].items():
        table.add_row("[green]yes[/green]" if layer["ok"] else "[red]NO[/red]", name, str(layer["detail"] or ""))
        if layer.get("mend"):
            table.add_row("", "", f"[yellow]{layer['mend']}[/yellow]")
    console.print(table)
    if "ready_ms" in found:
        console.print(
            f"Python {found['python']}, ready in {found['ready_ms']:.0f} ms, "
            f"first call in {found['first_call_ms']:.1f} ms"
        )
