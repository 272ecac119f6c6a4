"""What one call passes, on one screen: `call.py`. The steps stand beside it."""

from toolscore.calls.call import CallPipeline

__all__ = ["CallPipeline"]
