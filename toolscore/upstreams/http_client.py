"""The HTTP clients of the gateway, and fetching a small document with one."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import os
import socket
import ssl
import sys
import time
import urllib.request
import zlib
from collections.abc import AsyncIterator, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from email.utils import parsedate_to_datetime
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any, Protocol

from yarl import URL

from toolscore import __version__
from toolscore.core.errors import UpstreamProtocolError
from toolscore.core.hosts import is_loopback
from toolscore.core.models import UpstreamSpec
from toolscore.upstreams.http_channel import Answer
from toolscore.upstreams.lean import LeanClient
from toolscore.upstreams.process.spawn import CommandNotFound

if TYPE_CHECKING:
    import aiohttp

__all__ = [
    "HttpClient",
    "Unpacked",
    "client_errors",
    "fetch_json",
    "http_session",
    "lean_client",
    "plain_url",
    "proxy_for",
    "seconds_to_wait",
    "tls_for",
    "with_cookies",
]

USER_AGENT = f"toolscore/{__version__}"
"""Firewalls refuse those who do not say who they are."""
MAX_COOKIES_BYTES = 4096
ENCODINGS = {"gzip": 47, "x-gzip": 47, "deflate": 0}
"""Content codings, and the window bits for `zlib`; for `deflate` they depend on the first byte (RFC 9110, 8.4.1)."""

KEEPALIVE_SECONDS = 4
"""Below uvicorn's 5 s and Node's 5 s: we let go of an idle connection before the server closes it under a request."""

PIECE_BYTES = 64 * 1024
FETCH_SECONDS = 10.0
MAX_FETCHED_BYTES = 1024 * 1024


class HttpClient(Protocol):
    """What is used of aiohttp's client."""

    def request(self, method: str, url: str | URL, **options: Any) -> AbstractAsyncContextManager[Any]: ...
    def get(self, url: str | URL, **options: Any) -> AbstractAsyncContextManager[Any]: ...
    def post(self, url: str | URL, **options: Any) -> AbstractAsyncContextManager[Any]: ...


@asynccontextmanager
async def http_session(*, public_only: bool = False) -> AsyncIterator[HttpClient]:
    """An HTTP client for all that is rare; made when something is asked first, since it takes 6 MB and 0.1 s.

    Args:
        public_only: names that stand for a private address are not found, whatever they stood for before.
    """
    client = _Later(public_only)
    try:
        yield client
    finally:
        await client.close()


def client_errors(*also: type[Exception], name: str = "ClientError") -> tuple[type[Exception], ...]:
    """An error of aiohttp, and others, for an `except`. Without it while aiohttp is not loaded: nobody raises it then,
    and loading it takes a moment. Not for `contextlib.suppress`, which asks before the body: that may be what loads it.
    """
    of_aiohttp = getattr(sys.modules.get("aiohttp"), name, None)
    return also if of_aiohttp is None else (of_aiohttp, *also)


class _Later:
    def __init__(self, public_only: bool) -> None:
        self._public_only = public_only
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    def request(self, method: str, url: str | URL, **options: Any) -> AbstractAsyncContextManager[Any]:
        if self._is_closed:
            raise RuntimeError("the session is closed")
        if self._session is None:
            self._session = _made(self._public_only)
        return self._session.request(method, url, **options)

    def get(self, url: str | URL, **options: Any) -> AbstractAsyncContextManager[Any]:
        return self.request("GET", url, **options)

    def post(self, url: str | URL, **options: Any) -> AbstractAsyncContextManager[Any]:
        return self.request("POST", url, **options)

    async def close(self) -> None:
        self._is_closed = True
        if self._session is not None:
            await self._session.close()


def _made(public_only: bool) -> aiohttp.ClientSession:
    import aiohttp

    class PublicResolver(aiohttp.ThreadedResolver):
        async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
            found = await super().resolve(host, port, family)
            for one in found:
                if not ipaddress.ip_address(one["host"]).is_global:
                    raise OSError(f"{host} is {one['host']}, a private address")
            return found

    resolver = PublicResolver() if public_only else None
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS, resolver=resolver),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        auto_decompress=False,  # a packed answer could unpack to more than any bound: see `Unpacked`
        headers={"User-Agent": USER_AGENT},
        skip_auto_headers=("Accept-Encoding",),  # servers nearby: packing costs more than it saves
    )


def lean_client() -> LeanClient:
    """What makes the requests that are calls."""
    return LeanClient(USER_AGENT)


def plain_url(url: str) -> tuple[URL, dict[str, str]]:
    """An address as it is asked for, and the header for the user and the password that stand in it.

    A query and an encoded slash stay as they were written; a fragment is for the reader alone.
    """
    parsed = URL(url, encoded=True)
    if parsed.user is None and parsed.password is None:
        return parsed.with_fragment(None), {}
    pair = f"{parsed.user or ''}:{parsed.password or ''}".encode()
    header = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    return URL(str(parsed.with_user(None)), encoded=True).with_fragment(None), header


def tls_for(spec: UpstreamSpec) -> ssl.SSLContext | None:
    """How a server is trusted, and what it is shown; `None`: as usual.

    Raises:
        CommandNotFound: a file that the entry names is not what it should be.
    """
    if not (spec.ca_file or spec.client_cert):
        return None
    context = ssl.create_default_context()
    file = spec.ca_file
    try:
        if file:
            context.load_verify_locations(os.path.expanduser(file))
        if spec.client_cert:
            file = spec.client_cert
            key = os.path.expanduser(spec.client_key) if spec.client_key else None
            context.load_cert_chain(os.path.expanduser(file), key, password=lambda: "")
    except (OSError, ValueError) as exc:
        raise CommandNotFound(f"{file} cannot be used: {getattr(exc, 'strerror', None) or exc}") from exc
    return context


def proxy_for(url: URL) -> URL | None:
    """The proxy that `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` name for an address; none for this machine itself."""
    host = url.host or ""
    if is_loopback(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy is None or urllib.request.proxy_bypass(host):
        return None
    return URL(proxy if "://" in proxy else f"http://{proxy}")


def seconds_to_wait(retry_after: str | None) -> float | None:
    """What a `Retry-After` header says, in seconds or as a date (RFC 9110, 10.2.3); `None`: nothing of use."""
    if retry_after is None:
        return None
    given = retry_after.strip()
    if given.isascii() and given.isdigit() and len(given) < 8:
        return float(given)
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def with_cookies(headers: MutableMapping[str, str], given: SimpleCookie) -> dict[str, str] | None:
    """Headers with the cookies that a server (or the balancer before it) set; `None`: nothing new.

    Args:
        headers: with those that it set before, in `Cookie`.
    """
    cookies = SimpleCookie(headers.get("Cookie", ""))
    for name, morsel in given.items():
        if morsel["max-age"] == "0" or not morsel.value:
            cookies.pop(name, None)
        else:
            cookies[name] = morsel.value
    text = "; ".join(f"{name}={morsel.coded_value}" for name, morsel in cookies.items())
    if text == headers.get("Cookie", "") or len(text) > MAX_COOKIES_BYTES:
        return None
    return {**headers, "Cookie": text}


class Unpacked:
    """The body of an answer, unpacked where it is packed, piece by piece: the reader's bound counts what comes out.

    Raises:
        UpstreamProtocolError: it is packed in another way than gzip or deflate.
    """

    def __init__(self, response: aiohttp.ClientResponse | Answer) -> None:
        self._content: Any = response.content
        self._coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if self._coding not in ENCODINGS and self._coding not in ("identity", ""):
            raise UpstreamProtocolError(f"the server packs its answers with {self._coding!r}, which we did not ask for")

    async def iter_any(self) -> AsyncIterator[bytes]:
        """The pieces, none of them large.

        Raises:
            UpstreamProtocolError: they cannot be unpacked.
        """
        if self._coding not in ENCODINGS:
            async for chunk in self._content.iter_any():
                yield chunk
            return
        unpacker: Any = None
        async for chunk in self._content.iter_any():
            if unpacker is None:
                bare = self._coding == "deflate" and chunk[:1] and chunk[0] & 0x0F != 8  # without zlib's own head
                unpacker = zlib.decompressobj(-15 if bare else ENCODINGS[self._coding] or 15)
            try:
                packed = chunk
                while packed:
                    yield unpacker.decompress(packed, PIECE_BYTES)
                    packed = unpacker.unconsumed_tail
            except zlib.error as exc:
                raise UpstreamProtocolError(f"the server's answer cannot be unpacked: {exc}") from exc


async def fetch_json(
    session: HttpClient, url: str, *, max_bytes: int = MAX_FETCHED_BYTES, seconds: float = FETCH_SECONDS
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
    except client_errors() as exc:
        raise OSError(str(exc)) from exc
    return json.loads(bytes(body))
