"""Who calls, and whether a browser page may.

Over loopback nobody is asked for a key. That makes every web page that the user opens a possible caller, so requests
must name a host that is ours (DNS rebinding) and, if they come from a page, an origin that is ours. Everybody else
shows an API key of ours, or a token (JWT) of an authorization server that the operator trusts.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import structlog
from pydantic import AfterValidator, Field, IPvAnyNetwork

from toolscore.access.tokens import ADMIN, TokenKeys, TokenRules, expiry
from toolscore.core.clock import timestamp
from toolscore.core.errors import Conflict, Forbidden, Overloaded, ToolNotFound, Unauthenticated
from toolscore.core.hosts import is_loopback
from toolscore.core.models import LOCAL, NOBODY, Principal
from toolscore.core.rules import Rules
from toolscore.core.tasks import TaskSet
from toolscore.stores.database import Database
from toolscore.stores.errors import StoreError
from toolscore.upstreams.references import secret_of

__all__ = [
    "ADMIN",
    "OUR_KEY",
    "AccessRules",
    "Authenticator",
    "Credential",
    "KeyRing",
    "TokenRules",
    "check_origin",
    "need_scope",
]

log = structlog.get_logger(__name__)

KEY = re.compile(r"ts_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
SCOPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")
OURS = Principal("toolscore", (ADMIN,))
OUR_KEY = f"ts_{'0' * 12}_{secrets.token_urlsafe(32)}"
"""What the programs that this process starts show when they come back to it; good for as long as it runs."""

READ_AGAIN_SECONDS = 2.0
"""How soon a key that was made or revoked elsewhere counts."""
READ_SECONDS = 1.0
"""So long a caller waits for keys that the database does not give."""
MIN_GIVEN = 32
"""Characters of a key that is brought from outside."""
REFRESH_SECONDS = 0.9
"""As old as keys are at most that open sockets are held to."""
READ_REST_SECONDS = 0.1
"""A key that we do not know has them read no more often than this."""


def check_origin(host: str | None, origin: str | None, allowed_hosts: Collection[str] = ()) -> None:
    """Refuse a request that a foreign web page sent, or that came in under a foreign name.

    Args:
        host: the `Host` header. origin: the `Origin` header, `None` where there is none.
        allowed_hosts: host names beside the loopback ones; `*` allows all.

    Raises:
        Forbidden: with what to configure.
    """
    if "*" in allowed_hosts:
        return
    for header, value in (("Host", _host_of(f"//{host}") if host else None), ("Origin", origin)):
        if value is None:
            continue
        name = _host_of(value) if header == "Origin" else value
        if not is_loopback(name) and name not in allowed_hosts:
            raise Forbidden(
                f"{header} {value!r} is not this gateway's: add {name!r} to `access.allowed_hosts` in toolscore.yaml "
                "if it should be"
            )


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as half an IPv6 address
        return ""


def need_scope(principal: Principal, scope: str) -> None:
    """Raise unless the principal has a scope.

    Raises:
        Forbidden: which one is missing.
    """
    if scope not in principal.scopes:
        raise Forbidden(f"{principal.name!r} may not do this: it takes the scope {scope!r}")


class KeyRing:
    """API keys: made, listed and revoked. Kept as SHA-256 hashes; a key itself is shown once, when it is made."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, name: str, scopes: Collection[str], expires_at: str | None = None) -> tuple[str, str]:
        """Make a key. Returns its id and the key.

        Args:
            name: of the principal that shows it; several keys may be one principal's.
            expires_at: RFC 3339 UTC; `None`: never.

        Raises:
            Conflict: a name or scope that cannot be one. StoreError.
        """
        if not NAME.fullmatch(name) or name in (LOCAL.name, NOBODY.name, OURS.name):
            raise Conflict(f"{name!r} is no name for a principal: letters, digits and ._@- , at most 64")
        wrong = [scope for scope in scopes if not SCOPE.fullmatch(scope)]
        if wrong:
            raise Conflict(f"{wrong[0]!r} is no scope: letters, digits and ._:/- , at most 64")
        key_id = secrets.token_hex(6)
        key = f"ts_{key_id}_{secrets.token_urlsafe(32)}"
        await self._database.save_key(
            {
                "key_id": key_id,
                "name": name,
                "hash": _hash(key),
                "scopes": " ".join(sorted(set(scopes))),
                "created_at": timestamp(),
                "expires_at": expires_at,
                "revoked_at": None,
            }
        )
        return key_id, key

    async def list(self) -> list[dict[str, Any]]:
        """All keys, without their hashes."""
        rows = await self._database.load_keys()
        return [{name: value for name, value in row.items() if name != "hash"} for row in rows]

    async def revoke(self, key_id: str) -> None:
        """Make a key worthless.

        Raises:
            ToolNotFound: no such key. StoreError.
        """
        if not await self._database.revoke_key(key_id, timestamp()):
            named = [row["key_id"] for row in await self.list() if row["name"] == key_id and not row["revoked_at"]]
            shown = f"the keys of {key_id!r}: {', '.join(named)}" if named else "`toolscore keys list` shows them"
            raise ToolNotFound(f"no key {key_id!r} that is not revoked already: {shown}")


class GivenKey(Rules):
    """A key that comes from the settings, such as a Secret's."""

    key: str = Field(min_length=1, description="32 characters or more; ${env:NAME} and ${file:/path} stand for theirs")
    scopes: tuple[str, ...] = ()


def _not_ours(name: str) -> str:
    if name in (LOCAL.name, NOBODY.name, OURS.name):
        raise ValueError(f"{name!r} is no name for a principal: it stands for whoever needs no key")
    return name


class AccessRules(Rules):
    """Who may come in."""

    needs_restart = True

    allowed_hosts: tuple[str, ...] = Field(
        (), description="host names under which browsers and proxies may reach us, beside localhost"
    )
    local_without_key: bool = Field(
        True, description="false: callers on this machine show a key, too (as behind a proxy)"
    )
    given_keys: dict[Annotated[str, AfterValidator(_not_ours)], GivenKey] = Field(
        {}, description="name → {key: ${env:…}, scopes: [admin]}: keys that are not made here but brought from outside"
    )
    tokens: TokenRules | None = Field(
        None, description="JWTs that count: {issuer: …, audience: …, jwks_url: …, scopes: [], admins: []}"
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/?#\s]+[^?#\s]*$",
        description="how clients reach us behind a proxy, such as https://tools.example.com/path",
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (), description="addresses or networks of proxies whose X-Forwarded-Proto, -Host and -Prefix count"
    )
    allow_unauthenticated: bool = Field(
        False, description="true: listen beyond this machine without keys. Whoever gets there runs any tool."
    )

    def trusts_proxy(self, address: str) -> bool:
        """Whether what a proxy at this address says of its client counts."""
        try:
            return any(ipaddress.ip_address(address) in network for network in self.trusted_proxies)
        except ValueError:  # a Unix socket
            return False


class Credential(NamedTuple):
    """What somebody showed: a key, by its id, or a token, by the moment from which it counts no more."""

    key_id: str | None
    expires_at: float | None


class Authenticator:
    """Turns what a caller shows into a `Principal`.

    Args:
        fetch: fetches the JSON at a URL, for the keys of the authorization server.
    """

    def __init__(
        self,
        database: Database,
        rules: AccessRules | None = None,
        *,
        fetch: Callable[[str], Awaitable[Any]] | None = None,
    ) -> None:
        self._database = database
        self._rules = rules or AccessRules()
        self._keys: dict[str, dict[str, Any]] = {}
        self._given = _given(self._rules.given_keys)
        self._error: str | None = None
        self._tasks = TaskSet()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._tokens = TokenKeys(self._rules.tokens, fetch) if self._rules.tokens is not None else None

    async def any_keys(self) -> bool:
        """Whether anybody could come in from outside."""
        await self._read_keys()
        made = any(row["revoked_at"] is None for row in self._keys.values())
        return made or bool(self._given) or self._rules.tokens is not None

    async def authenticate(self, authorization: str | None, api_key: str | None, *, local: bool) -> Principal:
        """Who shows this.

        Args:
            authorization: the header of that name, `Bearer …`. api_key: the header `X-API-Key`.
            local: whether the caller came over loopback, to a port that is open to loopback only.

        Raises:
            Unauthenticated: nothing was shown, or it is not good.
            Overloaded: whether it is good cannot be said just now.
        """
        shown = _shown(authorization, api_key)
        if shown is None:
            if local and self._rules.local_without_key:
                return LOCAL
            raise Unauthenticated(
                "this gateway asks who you are: send a key (`toolscore keys create`) as `Authorization: Bearer ts_…`"
            )
        given = self._given.get(_hash(shown)) if self._given else None
        if given is not None:
            return given
        if KEY.fullmatch(shown):
            return await self._of_key(shown)
        if self._tokens is not None and shown.count(".") == 2:
            return await self._tokens.principal(shown)
        raise Unauthenticated("the key is not valid: it was mistyped, or is for something else")

    def credential(self, authorization: str | None, api_key: str | None) -> Credential | None:
        """What was shown and accepted, to be looked at again later; `None`: nothing that could end."""
        try:
            shown = _shown(authorization, api_key) or ""
        except Unauthenticated:
            return None
        if self._given and _hash(shown) in self._given:
            return None
        if KEY.fullmatch(shown):
            return Credential(shown[3:15], None) if shown[3:15] != OUR_KEY[3:15] else None
        expires = expiry(shown) if self._tokens is not None else None
        return Credential(None, expires) if expires is not None else None

    async def refresh(self) -> None:
        """Know of keys that were made or revoked just now."""
        if time.monotonic() - self._read_at > REFRESH_SECONDS:
            await self._read_keys()

    def ended(self, credential: Credential) -> str | None:
        """Why a credential is good no more, as far as is known; `None`: it is."""
        if credential.key_id is None:
            return "the token has expired" if (credential.expires_at or 0.0) <= time.time() else None
        row = self._keys.get(credential.key_id)
        return _ended(row) if row is not None else "the key is gone"

    # API keys

    async def _of_key(self, key: str) -> Principal:
        if hmac.compare_digest(key, OUR_KEY):
            return OURS
        key_id = key[3:15]
        age = time.monotonic() - self._read_at
        if age > READ_AGAIN_SECONDS or (key_id not in self._keys and age > READ_REST_SECONDS):
            if self._error is None or key_id not in self._keys:
                await self._read_keys()
            elif not len(self._tasks):  # known from before, and nobody waits for a database that is away
                self._tasks.start(self._read_keys())
        row = self._keys.get(key_id)
        # The comparison takes as long for an id that there is not.
        good = hmac.compare_digest(row["hash"] if row is not None else _hash(""), _hash(key))
        if row is None and self._error is not None:
            raise Overloaded(
                f"whether this key is good cannot be said: the database cannot be asked ({self._error})",
                retry_after_seconds=1,
            )
        if row is None or not good:
            raise Unauthenticated("the key is not valid: it was mistyped, or is another gateway's")
        reason = _ended(row)
        if reason is not None:
            raise Unauthenticated(f"{reason}: ask for another")
        principal: Principal = row["principal"]
        return principal

    async def read_again(self) -> None:
        """Take what keys there are now, at once."""
        async with self._reading:  # what is being read just now may be older
            self._read_at = float("-inf")
        await self._read_keys()

    async def _read_keys(self) -> None:
        async with self._reading:
            if time.monotonic() - self._read_at <= READ_REST_SECONDS:
                return
            try:
                async with asyncio.timeout(READ_SECONDS):
                    rows = await self._database.load_keys()
            except (StoreError, TimeoutError) as exc:  # those that were known go on
                self._error = str(exc) or f"it did not answer within {READ_SECONDS:g} s"
                log.error("cannot read the keys", error=self._error)
            else:
                self._error = None
                self._keys = {
                    row["key_id"]: {**row, "principal": Principal(row["name"], tuple(row["scopes"].split()))}
                    for row in rows
                }
            self._read_at = time.monotonic()


def _given(keys: Mapping[str, GivenKey]) -> dict[str, Principal]:
    """Whose key has which hash. One that is not to be had or can be guessed counts for nobody; the log says so."""
    found = {}
    for name, one in keys.items():
        key = secret_of(one.key)
        if key is not None and len(key) >= MIN_GIVEN:
            found[_hash(key)] = Principal(name, one.scopes)
        elif key is not None:
            log.error("a key of access.given_keys is too short: it counts for nobody", name=name, least=MIN_GIVEN)
    return found


def _shown(authorization: str | None, api_key: str | None) -> str | None:
    """The key or token of a request: that of its `Authorization` where it has one.

    Raises:
        Unauthenticated: that header is something else.
    """
    if authorization is None:
        return api_key
    kind, _, value = authorization.partition(" ")
    if kind.lower() != "bearer" or not value.strip():
        raise Unauthenticated("the Authorization header must be `Bearer` and a key or token")
    return value.strip()


def _ended(row: Mapping[str, Any]) -> str | None:
    if row["revoked_at"] is not None:
        return f"the key {row['key_id']} was revoked"
    if row["expires_at"] is not None and row["expires_at"] <= timestamp():
        return f"the key {row['key_id']} has expired"
    return None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
