"""ToolScore: one address for every tool an agent can use."""

__all__ = ["__version__"]

__version__ = "0.2.0"
