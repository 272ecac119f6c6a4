"""What one call passes, and the steps beside it."""

from toolscore.calls.call import CallPipeline
from toolscore.calls.model import Call

__all__ = ["Call", "CallPipeline"]
