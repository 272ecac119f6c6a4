"""`python -m mcp_servers.python_executor`: the executor by itself."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Annotated

import typer

from mcp_servers.python_executor.server import create_server

__all__ = ["main"]


def main(
    stdio: Annotated[bool, typer.Option("--stdio", help="Serve MCP over stdin and stdout.")] = False,
    http: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Serve MCP over HTTP at /mcp.")] = None,
    connect: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Dial a router: ws://127.0.0.1:8081/register or ws+unix:///path:/register."),
    ] = None,
    server_id: Annotated[str, typer.Option(help="The id to register under.")] = "python-executor-mcp-server",
    timeout_seconds: Annotated[float, typer.Option(help="Time limit of a call that gives none.")] = 30,
    max_timeout_seconds: Annotated[float, typer.Option(help="The longest limit that a call may give.")] = 300,
    memory_mb: Annotated[int, typer.Option(help="Memory limit of a call.")] = 512,
    max_output_bytes: Annotated[int, typer.Option(help="Bound on stdout and on stderr.")] = 1024 * 1024,
    max_concurrent: Annotated[int, typer.Option(help="Calls that run at a time.")] = 16,
    max_queued: Annotated[int, typer.Option(help="Calls that may wait.")] = 256,
) -> None:
    """Run Python for agents, as an MCP server of its own."""
    if not (stdio or http or connect):
        print("choose at least one of --stdio, --http HOST:PORT and --connect URL", file=sys.stderr)
        raise typer.Exit(2)
    if http is not None and not http.rpartition(":")[2].isdigit():
        print(f"--http takes HOST:PORT, found {http!r}", file=sys.stderr)
        raise typer.Exit(2)

    async def run() -> None:
        from mcp_servers.python_executor import serving

        server = create_server(
            timeout_seconds=timeout_seconds,
            max_timeout_seconds=max_timeout_seconds,
            memory_mb=memory_mb,
            max_output_bytes=max_output_bytes,
            max_concurrent=max_concurrent,
            max_queued=max_queued,
        )
        jobs = []
        if stdio:
            jobs.append(serving.serve_stdio(server))
        if http is not None:
            host, _, port = http.rpartition(":")
            jobs.append(serving.serve_http(server, host or "127.0.0.1", int(port)))
        if connect is not None:
            jobs.append(serving.serve_dialling(server, connect, server_id))
        tasks = [asyncio.ensure_future(job) for job in jobs]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: [task.cancel() for task in tasks])
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            if not task.cancelled():
                task.result()

    asyncio.run(run())


if __name__ == "__main__":
    typer.run(main)
