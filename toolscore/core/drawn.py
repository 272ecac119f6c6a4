"""What is drawn by chance once for each process, and anew in one that was forked."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["Drawn"]


class Drawn:
    """A text that no two processes have in common.

    Args:
        draw: makes one.

    Attributes:
        text: of this process.
    """

    def __init__(self, draw: Callable[[], str]) -> None:
        self._draw = draw
        self._again()
        os.register_at_fork(after_in_child=self._again)

    def _again(self) -> None:
        self.text = self._draw()
