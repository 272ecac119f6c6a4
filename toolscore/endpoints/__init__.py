"""The doors; the only place with FastAPI."""

from toolscore.endpoints.app import AddressInUse, serve

__all__ = ["AddressInUse", "serve"]
