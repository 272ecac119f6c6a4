"""What a result holds beside text: how it is shown, and put into files."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import mimetypes
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import typer

from toolscore.cli.terminal import first_line, say

__all__ = ["make_folder", "save_result", "shown_block"]

MAX_ITEMS = 1000


def shown_block(block: Any, *, saved: bool) -> str:
    """A content block as text; of a picture or the like, its type and its size."""
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    data = block.get("data")
    if kind in ("image", "audio") and isinstance(data, str):
        size = f"{len(data) * 3 // 4:,} bytes"
        return f"[{block.get('mimeType', kind)}, {size}{'' if saved else '; --save DIR keeps it'}]"
    return f"[{kind}: {first_line(json.dumps(block))}]"


def make_folder(folder: Path) -> None:
    """Make the folder for a result.

    Raises:
        typer.Exit: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        say(f"{folder} cannot be made: {exc.strerror}")
        raise typer.Exit(2) from None


def save_result(data: dict[str, Any], folder: Path) -> bool:
    """Put the pictures, sounds, embedded resources and files of a result into a folder.

    The names come from the server: nothing is written outside of the folder, and nothing that is there is replaced.
    Returns whether all of it was written.

    Args:
        data: of the answer: `content` and `structured_content`.

    Raises:
        typer.Exit: the folder cannot be made.
    """
    make_folder(folder)
    count, whole = 0, True
    for name, content in _parts(data):
        count += 1
        if count > MAX_ITEMS:
            say(f"more than {MAX_ITEMS:,} files: the others are not saved")
            return False
        if content is None:
            say(f"{name}: did not come along")
            whole = False
            continue
        try:
            _write(folder, name, content)
            say(f"saved {folder / name} ({len(content):,} bytes)")
        except (OSError, ValueError) as exc:
            say(f"{name!r} was not saved: {getattr(exc, 'strerror', None) or exc}")
            whole = False
    if not count:
        say("the result has no files or pictures")
    return whole


def _write(folder: Path, name: str, content: bytes) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError("its name leads out of the folder")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError("a link leads out of the folder")
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
        file.write(content)


def _parts(data: dict[str, Any]) -> Iterator[tuple[str, bytes | None]]:
    """The name and the content of each; `None`: the content did not come along."""
    numbers: dict[str, int] = {}
    for block in data.get("content") or []:
        resource = block.get("resource") if block.get("type") == "resource" else None
        holder = resource if isinstance(resource, dict) else block
        encoded, text = holder.get("blob") if resource else holder.get("data"), holder.get("text")
        if not isinstance(encoded, str) and not (resource and isinstance(text, str)):
            continue
        kind = str(block.get("type"))
        numbers[kind] = numbers.get(kind, 0) + 1
        suffix = mimetypes.guess_extension(str(holder.get("mimeType", ""))) or ".bin"
        name = f"{kind}-{numbers[kind]}{suffix}"
        yield name, _decoded(encoded) if isinstance(encoded, str) else str(text).encode()
    structured = data.get("structured_content")
    files = structured.get("files") if isinstance(structured, dict) else None
    for file in files if isinstance(files, list) else []:
        if isinstance(file, dict) and isinstance(file.get("path"), str):
            content = file.get("content")
            if not isinstance(content, str):
                yield file["path"], None
            elif file.get("encoding") == "base64":
                yield file["path"], _decoded(content)
            else:
                yield file["path"], content.encode("utf-8", "surrogatepass")


def _decoded(text: str) -> bytes | None:
    with contextlib.suppress(binascii.Error, ValueError):
        return base64.b64decode(text)
    return None
