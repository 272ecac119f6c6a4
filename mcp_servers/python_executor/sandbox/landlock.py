"""Landlock: which files a process may reach, whatever the file system's own permissions say. Standard library only.

Source: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os

from mcp_servers.python_executor.sandbox.syscalls import raw

__all__ = ["abi", "access_mask", "create_ruleset", "grant", "grant_listing", "restrict_self"]

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
RULE_PATH_BENEATH = 1
CREATE_RULESET_VERSION = 1


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("fd", ctypes.c_int32))


def abi() -> int:
    """Return the kernel's version of Landlock.

    Raises:
        OSError: it has none.
    """
    return raw("landlock_create_ruleset", None, 0, CREATE_RULESET_VERSION)


def access_mask(version: int) -> int:
    """Return the bits of all file accesses that this version handles."""
    bits = 13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16
    return (1 << bits) - 1


def create_ruleset(version: int) -> int:
    """Make a ruleset that denies everything it can: files, TCP, and signals and abstract sockets out of its domain.

    Returns:
        Its descriptor.
    """
    attributes = _RulesetAttributes(access_mask(version), 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    return raw("landlock_create_ruleset", ctypes.byref(attributes), size, 0)


def grant(ruleset: int, path: str, *, write: bool = False) -> None:
    """Allow to read and execute the files below a path; with `write`, to read and write a device."""
    fd = os.open(path, os.O_PATH)
    try:
        folder = os.path.isdir(path)
        access = READ_FILE | (READ_DIR if folder else 0) | (WRITE_FILE if write else EXECUTE)
        rule = _PathBeneath(access, fd)
        raw("landlock_add_rule", ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(fd)


def grant_listing(ruleset: int, path: str) -> None:
    """Allow to list the folders below a path, and to read nothing."""
    fd = os.open(path, os.O_PATH)
    try:
        raw("landlock_add_rule", ruleset, RULE_PATH_BENEATH, ctypes.byref(_PathBeneath(READ_DIR, fd)), 0)
    finally:
        os.close(fd)


def restrict_self(ruleset: int) -> None:
    """Put the ruleset on this process, for good."""
    raw("landlock_restrict_self", ruleset, 0)
