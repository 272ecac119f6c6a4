"""The HTTP clients of the gateway, and fetching a small document with one."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

__all__ = ["fetch_json", "http_session"]

KEEPALIVE_SECONDS = 4
"""Below uvicorn's 5 s and Node's 5 s: we let go of an idle connection before the server closes it under a request."""

FETCH_SECONDS = 10.0
MAX_FETCHED_BYTES = 1024 * 1024


@asynccontextmanager
async def http_session(*, public_only: bool = False) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client of the gateway's hot path; shared, since making one costs 30 ms.

    Args:
        public_only: names that stand for a private address are not found, whatever they stood for before.
    """
    resolver = _PublicResolver() if public_only else None
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS, resolver=resolver)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        auto_decompress=False,  # we ask for none; a packed answer could unpack to more than any bound
        skip_auto_headers=("User-Agent", "Accept-Encoding"),  # servers nearby: packing costs more than it saves
    ) as session:
        yield session


class _PublicResolver(aiohttp.ThreadedResolver):
    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        found = await super().resolve(host, port, family)
        for one in found:
            if not ipaddress.ip_address(one["host"]).is_global:
                raise OSError(f"{host} is {one['host']}, a private address")
        return found


async def fetch_json(
    session: aiohttp.ClientSession, url: str, *, max_bytes: int = MAX_FETCHED_BYTES, seconds: float = FETCH_SECONDS
) -> Any:
    """Get the JSON at an address that the operator named. Redirects are not followed.

    Raises:
        OSError, TimeoutError: it cannot be fetched. ValueError: not JSON, or more than `max_bytes` of it.
    """
    try:
        async with asyncio.timeout(seconds), session.get(url, allow_redirects=False) as response:
            response.raise_for_status()
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    raise ValueError(f"{url} answered more than {max_bytes:,} bytes")
    except aiohttp.ClientError as exc:
        raise OSError(str(exc)) from exc
    return json.loads(bytes(body))
