"""A message of an error as a pattern, without what differs from one time to the next, and its class by its words."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

__all__ = ["MASKS", "Category", "Pattern", "categorise", "plain"]

Category = Literal[
    "validation", "not_found", "permission", "rate_limit", "timeout", "network", "database", "resource", "conflict",
    "upstream", "code", "other",
]  # fmt: skip

CATEGORIES: tuple[tuple[Category, str], ...] = (
    ("rate_limit", r"rate.?limit|too many requests|\b429\b|quota|throttl|overloaded|too often"),
    ("permission", r"permission|denied|forbidden|unauthori[sz]ed|unauthenticated|not allowed|access is|\b40[13]\b"
                   r"|credential|api.?key|not permitted|read-only|outside (?:of )?allowed"),
    ("timeout", r"time[ds]?.?out|deadline|took too long|no answer within"),
    ("database", r"\bsql|sqlite|postgres|mysql|database|no such (?:table|column)|relation .* does not exist|constraint"
                 r"|deadlock|duplicate key|integrityerror|operationalerror"),
    ("network", r"connection|connect\b|econn|dns|resolve host|getaddrinfo|unreachable|socket|ssl|tls|certificate|proxy"
                r"|network|name resolution|\b50[234]\b|broken pipe|went away"),
    ("code", r"traceback|nameerror|syntaxerror|typeerror|attributeerror|indexerror|modulenotfound|importerror"
             r"|zerodivision|keyerror|undefined is not|referenceerror"),
    ("validation", r"invalid|validation|required|must be|expected|not a valid|malformed|schema|unsupported|missing"
                   r"|cannot parse|could not parse|bad request|\b4(?:00|22)\b|do not fit"
                   r"|unknown (?:argument|parameter|field)"
                   r"|no time zone|unrecogni[sz]ed"),
    ("not_found", r"not found|no such|does not exist|doesn't exist|unknown|\b404\b|cannot find|enoent|no tool"),
    ("resource", r"memory|disk|no space|enospc|too (?:large|big|long|many)|quota|out of|limit exceeded|emfile"),
    ("conflict", r"conflict|already exists|\b409\b|locked|busy|in use|eexist"),
)  # fmt: skip
_categories = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in CATEGORIES]

MASKS = (
    (r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b", "UUID"),
    (r"https?://\S+", "URL"),
    (r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?", "TIME"),
    (r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b", "IP"),
    (r"(?<![\w/])(?:/[\w.@+-]+){2,}/?", "PATH"),
    (r"\b[A-Za-z]:\\\S+", "PATH"),
    (r"\b0x[0-9a-fA-F]+\b|\b[0-9a-fA-F]{16,}\b", "HEX"),
    (r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w])", "NUM"),
    (r"'[^'\n]{1,200}'|\"[^\"\n]{1,200}\"|`[^`\n]{1,200}`|“[^”\n]{1,200}”", "QUOTED"),
)
"""What differs from one time to the next."""


class Pattern(msgspec.Struct, kw_only=True):
    pattern_id: str
    template: str
    category: Category
    count: int
    first_seen: str
    last_seen: str
    seen_by: list[str] = []


def categorise(message: str) -> Category:
    """The class of an error, by its words."""
    return next((name for name, pattern in _categories if pattern.search(message)), "other")


def plain(template: str) -> str:
    """A pattern's words, for its vector."""
    return re.sub(r"<[A-Z*]+>", " ", template)
