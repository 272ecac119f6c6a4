"""The doors; the only place with FastAPI."""

from toolscore.endpoints.app import serve
from toolscore.endpoints.listening import AddressInUse

__all__ = ["AddressInUse", "serve"]
