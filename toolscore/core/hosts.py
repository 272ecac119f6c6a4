"""Which machine a host name or an address is."""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback", "local_host"]


def is_loopback(host: str) -> bool:
    """Whether an address to listen on, or a host name that a request gives, is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def local_host(host: str) -> str:
    """An address to listen on, as a program on this machine writes it in a URL."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
