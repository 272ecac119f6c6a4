"""The doors; the only place with FastAPI."""

from toolscore.endpoints.app import serve
from toolscore.endpoints.listening import AddressInUse
from toolscore.endpoints.workers import run_workers

__all__ = ["AddressInUse", "run_workers", "serve"]
