"""A memory of what was worked out, bounded without bookkeeping."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["Memo"]

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """A dict for values that can be made again: when it is full, it forgets all of them.

    Looking up costs what a dict costs, which an LRU cache does not; so this is for hot paths whose keys are few in
    practice, and somebody else's to choose.
    """

    __slots__ = ("_max_entries",)

    def __init__(self, max_entries: int) -> None:
        super().__init__()
        self._max_entries = max_entries

    def resize(self, max_entries: int) -> None:
        """Hold so many entries from now on."""
        self._max_entries = max_entries

    def __setitem__(self, key: K, value: V) -> None:
        if len(self) >= self._max_entries and key not in self:
            self.clear()
        super().__setitem__(key, value)
