"""What a gateway reads again when another one on the same database wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolscore.stores.tail import Tail

if TYPE_CHECKING:
    from toolscore.app.compose import Gateway

__all__ = ["follow_others"]


def follow_others(gateway: Gateway, tail: Tail) -> None:
    """Begin to take what others change: events, servers, single tools, pins, keys, installs."""

    async def pins() -> None:
        gateway.pins.read_again(gateway.upstreams.judge_again)

    async def servers() -> None:
        await gateway.installer.read_again()  # first: whether a server's folder is here is known then
        await gateway.servers.read_again()

    tail.on_change("events", gateway.events.read_on)
    tail.on_change("servers", servers)
    tail.on_change("installs", servers)
    tail.on_change("tools_off", gateway.switches.read_again)
    tail.on_change("pins", pins)
    tail.on_change("keys", gateway.auth.read_again)
    tail.start()
