"""Servers elsewhere, over streamable HTTP: nothing is fetched, their address is checked."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from toolscore.core.models import UpstreamSpec
from toolscore.discovery.install.failure import StepFailed
from toolscore.discovery.install.fetch.fetcher import MAX_DESCRIPTION, TAGS, Fetched
from toolscore.discovery.install.plan import Plan
from toolscore.discovery.install.policy import InstallRules
from toolscore.discovery.install.wish import Wish, headers_of, remote_of
from toolscore.upstreams.http_client import HttpClient

__all__ = ["RemoteFetcher"]


class RemoteFetcher:
    """A `Fetcher` of servers that run elsewhere.

    Args:
        http: connects to public addresses only, unless the rules allow private ones.
    """

    def __init__(self, rules: InstallRules, http: HttpClient) -> None:
        self._rules = rules
        self._http = http

    async def fetch(self, wish: Wish, plan: Plan, place: Path, extra: Sequence[str] = ()) -> Fetched:
        """As `Fetcher`: nothing is written to `place`."""
        private = self._rules.private_addresses
        await _check_address(plan.identifier, private=private)
        async with self._http.get(plan.identifier, allow_redirects=False) as response:
            if 300 <= response.status < 400:
                target = response.headers.get("location")
                raise StepFailed(f"it redirects to {target}: nobody has approved that address")
        spec = UpstreamSpec(
            url=plan.identifier,
            headers=headers_of(remote_of(wish.entry) or {}, wish.env),
            public_only=not private,
            description=wish.entry.description[:MAX_DESCRIPTION],
            tags=TAGS,
        )
        return Fetched(spec, plan.version or "")


async def _check_address(url: str, *, private: bool) -> None:
    """Check that a host has addresses, and that all of them are public.

    Args:
        private: other addresses will do, too.

    Raises:
        StepFailed: it has none, or one that will not do.
    """
    parts = urlsplit(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise StepFailed(f"{parts.hostname} cannot be found: {exc}") from exc
    for *_, address in found:
        if not private and not ipaddress.ip_address(address[0]).is_global:
            raise StepFailed(f"{parts.hostname} is {address[0]}, a private address, and these are not allowed")
