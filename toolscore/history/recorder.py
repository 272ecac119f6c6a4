"""`python -m toolscore.history.recorder`: writes the journal for the gateway that started it; ends when that does."""

from __future__ import annotations

from toolscore.telemetry.logs import configure_logging  # isort: skip  (before whatever logs: it keeps structlog small)

import asyncio
import os
import signal
import sys

from toolscore.history.recording import first_order, run_recorder
from toolscore.stores.database import StoreError

__all__ = ["main"]

MAX_FRAME = 64 * 1024


async def _run() -> None:
    reader = asyncio.StreamReader(limit=MAX_FRAME)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    try:
        order = await first_order(reader)
    except asyncio.IncompleteReadError:
        return
    lines = configure_logging(order.log_level, order.log_format)
    shown = lines.write if order.log_level in ("debug", "info") else len
    try:
        await run_recorder(reader, order, shown)
    except StoreError as exc:
        sys.exit(f"the recorder cannot open the database: {exc}")


def main() -> None:
    """The program."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the end of the pipe is the end
    if hasattr(os, "nice"):
        os.nice(5)
    asyncio.run(_run())


if __name__ == "__main__":
    main()
