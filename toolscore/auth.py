"""Who calls, and whether a browser page may.

Over loopback nobody is asked for a key. That makes every web page that the user opens a possible caller, so requests
must name a host that is ours (DNS rebinding) and, if they come from a page, an origin that is ours.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from toolscore.errors import Forbidden

__all__ = ["check_origin", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether an address to listen on, or a host name that a request gives, is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


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
    for header, value in (("Host", urlsplit(f"//{host}").hostname if host else None), ("Origin", origin)):
        if value is None:
            continue
        name = urlsplit(value).hostname or "" if header == "Origin" else value
        if not is_loopback(name) and name not in allowed_hosts:
            raise Forbidden(
                f"{header} {value!r} is not this gateway's: add {name!r} to `access.allowed_hosts` in toolscore.yaml "
                "if it should be"
            )
