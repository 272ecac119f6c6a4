"""TLS of the gateway's own HTTP port: the certificate is read again when its files change, as renewing programs write
them.
"""

from __future__ import annotations

import asyncio
import os
import ssl

import structlog

from toolscore.core.errors import SettingsError
from toolscore.core.places import Stamp, stamp

__all__ = ["Certificate"]

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0


class Certificate:
    """What the port shows its clients. Connections that are open keep what they began with.

    Args:
        chain: PEM file of the certificate and those between it and its authority.
        key: PEM file of its private key; `None`: it stands in the first.

    Raises:
        SettingsError: the files are not what they should be.
    """

    def __init__(self, chain: str, key: str | None) -> None:
        self._chain, self._key = os.path.expanduser(chain), os.path.expanduser(key) if key else None
        self._seen = self._stamps()
        try:
            self.context = self._loaded()
        except (OSError, ValueError) as exc:
            raise SettingsError([f"core_services.toolscore_http.tls_cert: {self._named(exc)}"]) from exc

    async def watch(self) -> None:
        """Read the files again each time that they have changed, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            stamps = self._stamps()
            if stamps == self._seen:
                continue
            self._seen = stamps
            try:
                await asyncio.to_thread(self._loaded)  # first on the side: the two may not belong together yet
                self.context.load_cert_chain(self._chain, self._key)
                log.info("the certificate was read again", file=self._chain)
            except (OSError, ValueError) as exc:
                log.error("the certificate has changed and is of no use: the old one is shown", reason=self._named(exc))

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._chain, self._key, password=lambda: "")  # never ask at the terminal
        return context

    def _stamps(self) -> list[Stamp]:
        return [stamp(path) for path in (self._chain, self._key) if path]

    def _named(self, exc: Exception) -> str:
        files = " and ".join(filter(None, (self._chain, self._key)))
        return f"{files} cannot be used: {getattr(exc, 'strerror', None) or exc}"
