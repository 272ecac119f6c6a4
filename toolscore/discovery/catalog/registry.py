"""Reads a registry that speaks the MCP Registry API v0.1: all servers, page by page, or the versions of one server."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from toolscore.discovery.bounded_json import request_json
from toolscore.discovery.catalog.server_json import entries_of
from toolscore.upstreams.http_client import HttpClient

__all__ = ["read_servers", "read_versions"]

PAGE = 100
"""Servers on a page: the most that the API serves."""
PAGE_SECONDS = 20.0
MAX_PAGE_BYTES = 8 * 1024 * 1024
MAX_SERVERS = 50_000
MAX_TOTAL_BYTES = 64 * 1024 * 1024
TOTAL_SECONDS = 900.0
"""A slow registry is read in the background, so this may be long; it ends a registry that never does."""
MAX_CURSOR = 500


async def read_servers(http: HttpClient, url: str, source: str) -> list[dict[str, Any]]:
    """Read the latest version of every server.

    Args:
        url: the registry's base address.
        source: the catalog's name.

    Returns:
        Cleaned objects `{"server": …, "_meta": …}`, as `entries_of` takes them.

    Raises:
        OSError, TimeoutError: the registry cannot be reached. ValueError: its answer is too large, or no page.
    """
    servers: list[dict[str, Any]] = []
    seen: set[str | None] = set()  # a registry that repeats a cursor has no end
    cursor: str | None = None
    size = 0
    async with asyncio.timeout(TOTAL_SECONDS):
        while cursor not in seen and len(servers) < MAX_SERVERS:
            seen.add(cursor)
            asked = {"limit": str(PAGE), "version": "latest", **({"cursor": cursor} if cursor else {})}
            page = await _page(http, f"{url}/v0.1/servers?{urlencode(asked)}")
            for entry in entries_of(page, source, vouched=True):
                servers.append({"server": entry.server, "_meta": entry.meta})
                size += len(msgspec.json.encode(servers[-1]))
            if size > MAX_TOTAL_BYTES:
                raise ValueError(f"it has more than {MAX_TOTAL_BYTES:,} bytes of servers")
            metadata = page.get("metadata")
            cursor = metadata.get("nextCursor") if isinstance(metadata, dict) else None
            if not cursor:
                break
            if not isinstance(cursor, str) or len(cursor) > MAX_CURSOR:
                raise ValueError("it gave a cursor that is no text")
    return servers


async def read_versions(http: HttpClient, url: str, name: str) -> dict[str, Any]:
    """Read the page with all versions of one server.

    Args:
        url: the registry's base address.
        name: of the server.

    Raises:
        OSError, TimeoutError: the registry cannot be reached. ValueError: its answer is too large, or no page.
    """
    return await _page(http, f"{url}/v0.1/servers/{quote(name, safe='')}/versions")


async def _page(http: HttpClient, url: str) -> dict[str, Any]:
    page = await request_json(http, url, timeout_seconds=PAGE_SECONDS, max_bytes=MAX_PAGE_BYTES)
    if not isinstance(page, dict):
        raise ValueError("its answer is no page of servers")
    return page
