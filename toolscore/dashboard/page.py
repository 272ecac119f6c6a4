"""The built page, file by file, as a browser takes it."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import NamedTuple

__all__ = ["CONTENT_POLICY", "Page", "Part"]

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load and reach: this gateway, and pictures and sounds that tools answered with."""
FOR_EVER = "public, max-age=31536000, immutable"
EACH_TIME = "no-cache"
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
PACKED = (("br", ".br"), ("gzip", ".gz"))
NOT_BUILT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ToolScore</title></head><body>
<h1>ToolScore runs, but its page is not built</h1>
<p>The gateway works all the same, with <a href="/docs">the API</a> and the command <code>toolscore</code>.</p>
<p>To build the page, with access to npm's registry: in a checkout</p>
<pre>.venv/bin/python -m toolscore.dashboard.build</pre>
<p>and load this page again. It says what is wrong if it cannot be built.</p>
</body></html>
"""


class Part(NamedTuple):
    """A file of the page, ready to be sent."""

    status: int
    headers: dict[str, str]
    content: bytes


class Page:
    """The built page in a folder; it may be built while the gateway runs. Reads files: call it beside the loop."""

    def __init__(self, folder: Path = Path(__file__).parent / "dist") -> None:
        self._folder = folder.resolve()

    def part(self, path: str, accepts: str = "") -> Part | None:
        """The file at a path below `/ui/`; of what is no file the page itself, whose router knows its own addresses.

        Args:
            accepts: the header `Accept-Encoding`.

        Returns:
            `None`: there is no such file.
        """
        if "\0" in path:
            return None
        file = self._folder / path if path else self._folder / "index.html"
        inside = file.resolve().is_relative_to(self._folder)
        if inside and file.is_file() and file.suffix not in (".br", ".gz"):
            return self._read(file, accepts)
        if "." in path.rpartition("/")[2] and path.startswith("assets/"):
            return None
        index = self._folder / "index.html"
        if index.is_file():
            return self._read(index, accepts)
        return Part(503, {"content-type": "text/html; charset=utf-8", "cache-control": "no-store", **HEADERS},
                    NOT_BUILT.encode())  # fmt: skip

    def _read(self, file: Path, accepts: str) -> Part:
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        text = kind.startswith("text/") or kind.endswith(("javascript", "xml"))
        hashed = file.parent != self._folder
        headers = {
            "content-type": f"{kind}; charset=utf-8" if text else kind,
            "cache-control": FOR_EVER if hashed else EACH_TIME,
            "vary": "accept-encoding",
            **HEADERS,
        }
        offered = [one.replace(" ", "") for one in accepts.split(",")]
        taken = {one.partition(";")[0] for one in offered if not one.endswith(";q=0")}
        for name, suffix in PACKED:
            packed = file.with_name(file.name + suffix)
            if name in taken and packed.is_file():
                return Part(200, {**headers, "content-encoding": name}, packed.read_bytes())
        return Part(200, headers, file.read_bytes())
