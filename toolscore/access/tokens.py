"""Tokens of an authorization server (JWT): its signing keys, and who shows a token."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from pydantic import Field

from toolscore.core.errors import Forbidden, Unauthenticated
from toolscore.core.models import Principal
from toolscore.core.rules import HttpUrl, Rules

__all__ = ["ADMIN", "TokenKeys", "TokenRules", "expiry"]

log = structlog.get_logger(__name__)

ADMIN = "admin"
"""The scope that lets a principal change the gateway: servers, keys, pins."""
JWKS_SECONDS = 300.0
"""How long the keys of an authorization server are used before they are fetched again."""
JWKS_REST_SECONDS = 10.0
"""A token of a key that we do not know has them fetched no more often than this."""
JWKS_WAIT_SECONDS = 5.0
"""How long it waits for them."""
LEEWAY_SECONDS = 30


class TokenRules(Rules):
    """Which tokens (JWT) of an authorization server count: those with this issuer and audience, signed by its keys."""

    issuer: str = Field(description="the token's `iss`")
    audience: str = Field(description="the token's `aud`")
    jwks_url: HttpUrl = Field(description="where its keys stand")
    algorithms: tuple[str, ...] = Field(("RS256", "ES256", "EdDSA"), description="of the signature")
    scopes: tuple[str, ...] = Field((), description="a token must have them all")
    admins: tuple[str, ...] = Field((), description="subjects that get the scope `admin`")


class TokenKeys:
    """The keys that tokens are signed with.

    Args:
        fetch: fetches the JSON at a URL.
    """

    def __init__(self, rules: TokenRules, fetch: Callable[[str], Awaitable[Any]] | None) -> None:
        self._rules = rules
        self._fetch = fetch
        self._jwks: Any = None
        self._jwks_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def principal(self, token: str) -> Principal:
        """Who shows a token.

        Raises:
            Unauthenticated: it is not good. Forbidden: it lacks a scope.
        """
        import jwt  # 3 MB, and with it cryptography, that most gateways never need

        rules = self._rules
        try:
            key = await self._signing_key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(rules.algorithms),
                issuer=rules.issuer,
                audience=rules.audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, TypeError, ValueError) as exc:  # a key of another kind than the header's algorithm
            raise Unauthenticated(f"the token is not valid: {exc}") from exc
        scopes = claims.get("scope", claims.get("scp", ""))
        listed = scopes.split() if isinstance(scopes, str) else scopes
        granted = [scope for scope in listed if isinstance(scope, str)] if isinstance(listed, list) else []
        missing = [scope for scope in rules.scopes if scope not in granted]
        if missing:
            raise Forbidden(f"the token lacks the scope {missing[0]!r}")
        granted = [scope for scope in granted if scope != ADMIN]  # which is ours to give
        if claims["sub"] in rules.admins:
            granted.append(ADMIN)
        return Principal(f"{rules.issuer}#{claims['sub']}", tuple(granted))

    def _listed(self, key_id: Any) -> Any:
        found = self._jwks.keys if self._jwks is not None else ()
        return next((one.key for one in found if one.key_id == key_id), None)

    async def _fetch_keys(self) -> None:
        import jwt

        try:
            if self._fetch is None:
                return
            found = await self._fetch(self._rules.jwks_url)
            if not isinstance(found, dict):
                raise ValueError(f"expected a JSON object with `keys`, found {type(found).__name__}")
            self._jwks = jwt.PyJWKSet.from_dict(found)
        except Exception as exc:  # whatever that server says: the keys that are known go on
            log.error("cannot fetch the keys of the authorization server", url=self._rules.jwks_url, error=str(exc))
        finally:
            self._fetching = None

    async def _signing_key(self, key_id: Any) -> Any:
        key = self._listed(key_id)
        age = time.monotonic() - self._jwks_at
        if age > (JWKS_SECONDS if key is not None else JWKS_REST_SECONDS) and self._fetching is None:
            self._jwks_at = time.monotonic()
            self._fetching = asyncio.create_task(self._fetch_keys())
        # A key that is known answers at once; who shows another waits for the list that is on its way.
        if key is None and self._fetching is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(JWKS_WAIT_SECONDS):
                    await asyncio.shield(self._fetching)
            key = self._listed(key_id)
        if key is not None:
            return key
        raise Unauthenticated(f"the token is signed by a key that {self._rules.jwks_url} does not list")


def expiry(token: str) -> float | None:
    """The moment from which a token counts no more, in seconds since 1970; it has been checked before."""
    if token.count(".") != 2:
        return None
    import jwt

    try:
        expires = jwt.decode(token, options={"verify_signature": False}).get("exp")
    except jwt.PyJWTError:
        return None
    return float(expires) + LEEWAY_SECONDS if isinstance(expires, int | float) else None
