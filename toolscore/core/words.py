"""Words of a text, as searches compare them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

__all__ = ["STOP", "WORD", "raw_words", "stem", "terms"]

WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_A-Za-z]+")
STOP = frozenset(
    """a about an and any are as at be by can could do does for from get have has help how i if in into is it like me my
    need of on or our please some that the this to want we what when where which who will with would you your""".split()
)


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """Reduce an English word in lower case to its stem."""
    return str(_stemmer().stemWord(word))


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("english")


def terms(text: str) -> list[str]:
    """List the words of a text, in lower case and stemmed; `camelCase` and `snake_case` are two words each."""
    return [stem(word) for word in raw_words(text)]


def raw_words(text: str) -> list[str]:
    """List the words of a text, in lower case."""
    return [word.lower() for word in WORD.findall(text)]
