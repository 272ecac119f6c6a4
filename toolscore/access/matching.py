"""Whether texts of strangers match an operator's expressions, in bounded time.

It is `re` itself that looks, as no other engine means the same by all that it understands. What it would take long for
is ended: by the clock of the process where one place of a text has too many ways to match, and place by place where a
text has too many places.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

__all__ = ["Looking", "expression"]

SHORT = 4096
"""Characters of a text for which even an expression that looks at each rest of it from each place is quick."""
REPEATS = frozenset("*+{?")
"""An expression without any of these has few ways to match at a place, whatever the text."""
PREFIX = re.compile(r"(?:[\w ](?![*+?{]))*")
"""What all matches of an expression begin with, where it has no alternatives."""
PLACES = 256
"""So many are looked at between two looks at the clock."""


class Expression:
    """An operator's regular expression.

    Raises:
        re.error, TypeError: it is none.
    """

    def __init__(self, text: str) -> None:
        self.pattern = re.compile(text)
        prefix = PREFIX.match(text)
        self._prefix = prefix.group() if prefix is not None and "|" not in text else ""
        self.is_quick = REPEATS.isdisjoint(text)
        self.is_at_start = text.startswith("^") and "|" not in text and not self.pattern.flags & re.MULTILINE

    def found_in(self, text: str, until: float) -> bool:
        """As `re.search`. `until`: of `time.thread_time`. Raises: TimeoutError."""
        if len(text) <= SHORT:
            return self.pattern.search(text) is not None
        if self.is_at_start:
            return self.pattern.match(text) is not None
        for looked, place in enumerate(self._places(text)):
            if self.pattern.match(text, place) is not None:  # which sees what stands before it
                return True
            if looked % PLACES == 0 and time.thread_time() > until:
                raise TimeoutError
        return False

    def _places(self, text: str) -> Iterator[int]:
        if not self._prefix:
            yield from range(len(text) + 1)
            return
        place = text.find(self._prefix)
        while place >= 0:
            yield place
            place = text.find(self._prefix, place + 1)


expression = lru_cache(maxsize=4096)(Expression)


class Looking:
    """Time to look for expressions: `seconds` of CPU for all of them together."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def finds(self, wanted: str, text: str) -> bool:
        """Whether an expression is found in a text, as `re.search` finds it.

        Raises:
            TimeoutError: it cannot be told in time.
        """
        looked_for = expression(wanted)
        if looked_for.is_quick:
            return looked_for.pattern.search(text) is not None
        if self._left <= 0:
            raise TimeoutError
        began = time.thread_time()
        try:
            with _alarm.within(self._left):
                return looked_for.found_in(text, began + self._left)
        finally:
            self._left -= time.thread_time() - began


class _Alarm:
    """`TimeoutError` out of the body of `within` after so much CPU of the process. Only in its main thread, where `re`
    looks for signals.
    """

    def __init__(self) -> None:
        self._armed = False

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if signal.getsignal(signal.SIGVTALRM) != self._ring:
            signal.signal(signal.SIGVTALRM, self._ring)
        self._armed = True
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            yield
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _ring(self, *_: Any) -> None:
        if self._armed:
            self._armed = False
            raise TimeoutError


_alarm = _Alarm()
