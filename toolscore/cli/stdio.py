"""`toolscore stdio`: MCP over stdin and stdout, for clients that start a command, relayed to the gateway that runs.

One WebSocket carries everything both ways, in either era. Where the connection breaks, the session is made anew and the
client goes on; where no gateway runs, one is started that all such clients share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from toolscore.cli.relay import MAX_LINE_BYTES, Relay
from toolscore.cli.terminal import PORT_TAKEN, ConfigDir, Url, config_folder, gateway_url, say

__all__ = ["stdio"]

MAX_LOG_BYTES = 5 * 1024 * 1024


def next_line(stream: BinaryIO) -> bytes:
    """The next line, empty at the end. Of one over the bound as much as shows that it is."""
    line = stream.readline(MAX_LINE_BYTES + 2)
    rest = line
    while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
        rest = stream.readline(MAX_LINE_BYTES + 2)
    return line


def stdio(
    server: Annotated[str | None, typer.Option("--server", metavar="ID", help="Only this server's tools.")] = None,
    url: Url = None,
    config: ConfigDir = None,
) -> None:
    """Speak MCP over stdin and stdout, for clients that start a command. Starts a gateway where none runs.

    A gateway that was started so is shared by all such clients, and ends when nobody uses it any more.
    """
    given = url or os.environ.get("TOOLSCORE_URL")
    if config is not None:
        os.environ["TOOLSCORE_CONFIG_DIR"] = str(config.absolute())
    url = url or gateway_url()[0]
    scheme, separator, place = url.rstrip("/").partition("://")
    if not separator or scheme not in ("http", "https"):
        say(f"toolscore stdio: the gateway's address must begin with http:// or https://, found {url}")
        raise typer.Exit(2)
    path = f"/servers/{server}/mcp" if server else "/mcp"
    key = os.environ.get("TOOLSCORE_API_KEY")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but MCP on stdout, whoever prints
    relay_to = f"{scheme.replace('http', 'ws')}://{place}{path}"
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def write(line: bytes) -> None:
        try:
            out.write(line)
            out.flush()
        except ValueError as exc:  # closed
            raise BrokenPipeError(str(exc)) from exc

    async def run() -> None:
        start = None if given else Starter(config_folder(config)).start
        await Relay(relay_to, headers, write, start).run(lambda: next_line(sys.stdin.buffer))

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())
    with contextlib.suppress(OSError):
        out.close()
    os._exit(0)  # a thread may wait for a line that never comes


class Starter:
    """Starts a gateway in the background, of nobody's group, so that it outlives the client that needed it first."""

    def __init__(self, config: Path | None) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None
        self._answered = False
        """Whether a gateway has answered since ours was started: it may be gone before its exit is seen."""

    def start(self, answered: bool) -> str | None:
        """Start one, unless one of ours starts already. Returns why that one has ended, in words.

        Args:
            answered: a gateway has answered since the last time: how the one that we started ended later tells nothing
                about starting one.
        """
        self._answered = self._answered or answered
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return None
            self._process = None
            if code not in (0, PORT_TAKEN) and not self._answered:  # another client may have been faster
                return f"a gateway was started and ended ({code}): {self._last_words()}"
        self._answered = False
        try:
            self._start_one()
        except OSError as exc:
            return f"no gateway can be started: {exc}"
        return None

    def _start_one(self) -> None:
        from toolscore.app.files import load_settings

        folder = load_settings(self._config).settings.storage.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log = folder / "gateway.log"
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > MAX_LOG_BYTES:
                self._log.replace(self._log.with_suffix(".log.1"))
        command = [sys.executable, "-m", "toolscore", "serve", "--while-used"]
        if self._config is not None:
            command += ["--config", str(self._config)]
        environment = {"TOOLSCORE_LOGGING__LEVEL": "warning", **os.environ}
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        say(f"toolscore: starting a gateway; its log is {self._log}")

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines() if self._log else []
        except OSError:
            lines = []
        return next((line.strip() for line in reversed(lines[-20:]) if line.strip()), "it said nothing")
