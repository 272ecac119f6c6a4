"""JSON from an address over HTTP, bounded in bytes and seconds, without following redirects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from toolscore.upstreams.http_client import HttpClient, client_errors

__all__ = ["request_json"]

CHUNK_BYTES = 64 * 1024


async def request_json(
    http: HttpClient,
    url: str,
    *,
    timeout_seconds: float,
    max_bytes: int,
    post: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """Ask for JSON with GET, or with POST if there is something to send.

    Args:
        timeout_seconds: for the whole answer.
        max_bytes: of the answer's body.
        post: sent as JSON; `None`: GET.

    Raises:
        OSError: no connection, or another status than 200. TimeoutError: it took too long.
        ValueError: the answer is too large, or no JSON.
    """
    try:
        async with (
            asyncio.timeout(timeout_seconds),
            http.request(
                "GET" if post is None else "POST", url, json=post, headers=headers, allow_redirects=False
            ) as response,
        ):
            if response.status != 200:
                raise OSError(f"it answered {response.status} {response.reason or ''}".rstrip())
            body = bytearray()
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                body += chunk
                if len(body) > max_bytes:
                    raise ValueError(f"it answered more than {max_bytes:,} bytes")
    except client_errors() as exc:
        raise OSError(str(exc)) from exc
    try:
        return json.loads(bytes(body))
    except RecursionError as exc:
        raise ValueError("it answered JSON that is nested too deeply") from exc
