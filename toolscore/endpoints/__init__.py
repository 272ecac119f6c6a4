"""The doors; the only place with FastAPI."""

from toolscore.endpoints.app import AddressInUse, serve
from toolscore.endpoints.workers import run_workers

__all__ = ["AddressInUse", "run_workers", "serve"]
