"""REST: the monitoring API of docs/wire.md, a file a tag. One envelope for every answer, errors too."""

from fastapi import FastAPI

from toolscore.app.compose import Gateway
from toolscore.endpoints.rest.answers import add_failures
from toolscore.endpoints.rest.cache import cache_router
from toolscore.endpoints.rest.code import code_router
from toolscore.endpoints.rest.discovery import discovery_router
from toolscore.endpoints.rest.errors import errors_router
from toolscore.endpoints.rest.events import events_router
from toolscore.endpoints.rest.journal import journal_router
from toolscore.endpoints.rest.keys import keys_router
from toolscore.endpoints.rest.monitoring import monitoring_router
from toolscore.endpoints.rest.openapi import FAILURE_OPENAPI, describe
from toolscore.endpoints.rest.pins import pins_router
from toolscore.endpoints.rest.policy import policy_router
from toolscore.endpoints.rest.servers import servers_router
from toolscore.endpoints.rest.settings import settings_router
from toolscore.endpoints.rest.tools import tools_router

__all__ = ["ROUTERS", "add_rest"]

ROUTERS = (
    tools_router, code_router, servers_router, policy_router, monitoring_router, journal_router, pins_router,
    errors_router, cache_router, events_router, keys_router, settings_router, discovery_router,
)  # fmt: skip
"""Each makes the routes of one tag."""


def add_rest(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes, and the envelope for errors, to an application."""
    for router in ROUTERS:
        app.include_router(router(gateway), responses=FAILURE_OPENAPI)
    add_failures(app)
    describe(app)
