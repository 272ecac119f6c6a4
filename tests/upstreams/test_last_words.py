"""Of what programs print when they fail, the line that says why; each as it was printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolscore.upstreams.process.last_words import MAX_CAUSE, cause_of, hint_for

NPM_MISSING = """\
npm error code E404
npm error 404 Not Found - GET https://registry.example/no-such-package
npm error 404
npm error 404  The requested resource 'no-such-package@*' could not be found or you do not have permission to access it.
npm error A complete log of this run can be found in: /root/.npm/_logs/2026-11-29T04_38_48_147Z-debug-0.log"""
NPM_VERSION = """\
npm error code ETARGET
npm error notarget No matching version found for left-pad@99.
npm error notarget In most cases you or one of your dependencies are requesting
npm error notarget a package version that doesn't exist.
npm error A complete log of this run can be found in: /root/.npm/_logs/x-debug-0.log"""
NPM_FILE = """\
npm warn tarball tarball data for file:nowhere.tgz (null) seems to be corrupted. Trying again.
npm error code ENOENT
npm error syscall open
npm error path /tmp/nowhere.tgz
npm error errno -2
npm error enoent ENOENT: no such file or directory, open '/tmp/nowhere.tgz'
npm error enoent This is related to npm not being able to find a file.
npm error enoent
npm error A complete log of this run can be found in: /root/.npm/_logs/x-debug-0.log"""
NPM_BUILD = """\
npm error code 1
npm error path /x/node_modules/better-sqlite3
npm error command failed
npm error command sh -c prebuild-install || node-gyp rebuild --release
npm error gyp info it worked if it ends with ok
npm error gyp ERR! find Python
npm error gyp ERR! stack Error: Could not find any Python installation to use
npm error A complete log of this run can be found in: /root/.npm/_logs/x-debug-0.log"""
UV = """\
Using Python 3.11.7 environment at: v
error: No solution found when resolving dependencies
  cause: Because no-such-zzz was not found in the package registry and you require no-such-zzz, we can conclude that
         your requirements are unsatisfiable."""
UV_TREE = """\
  × No solution found when resolving dependencies:
  ╰─▶ Because there is no version of attrs==1.2.3.4.5 and you require
      attrs==1.2.3.4.5, we can conclude that your requirements are
      unsatisfiable."""
PYTHON = """\
Traceback (most recent call last):
  File "<string>", line 1, in <module>
ValueError: inner

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "<string>", line 3, in <module>
RuntimeError: the token is not valid
sys:1: ResourceWarning: unclosed file"""
GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "<string>", line 2, in <module>
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | ModuleNotFoundError: No module named 'x'
    +------------------------------------"""
OLD_SDK = """\
Traceback (most recent call last):
  File "server.py", line 1, in <module>
    from mcp.server.fastmcp import FastMCP
ModuleNotFoundError: No module named 'mcp.server.fastmcp'"""
ARGPARSE = """\
usage: serve [-h] --db-path DB_PATH
serve: error: the following arguments are required: --db-path"""
NO_PROGRAM = """\
Traceback (most recent call last):
  File "subprocess.py", line 1953, in _execute_child
    raise child_exception_type(errno_num, err_msg, err_filename)
FileNotFoundError: [Errno 2] No such file or directory: 'git'"""
NODE = """\
node:internal/modules/cjs/loader:1228
  throw err;
  ^

Error: Cannot find module 'nope'
Require stack:
- /x/[eval]
    at Module._resolveFilename (node:internal/modules/cjs/loader:1225:15)
    at node:internal/main/eval_string:71:3 {
  code: 'MODULE_NOT_FOUND',
  requireStack: [ '/x/[eval]' ]
}

Node.js v22.12.0"""
NODE_SPAWN = """\
node:events:497
      throw er; // Unhandled 'error' event
      ^

Error: spawn docker ENOENT
    at ChildProcess._handle.onexit (node:internal/child_process:285:19)
Node.js v22.12.0"""
SHELL = "/bin/sh: 1: ffmpeg: not found"
LOGGED = """\
[info] starting up
Missing environment variable BRAVE_API_KEY
    at main (/x/index.js:10:3)
Node.js v22.12.0"""
SILENT = "see you"


@pytest.mark.parametrize(
    ("output", "cause", "hint"),
    [
        (NPM_MISSING, "npm: 404 Not Found - GET https://registry.example/no-such-package", None),
        (NPM_VERSION, "npm: No matching version found for left-pad@99.", None),
        (NPM_FILE, "npm: ENOENT: no such file or directory, open '/tmp/nowhere.tgz'", None),
        (NPM_BUILD, "npm: gyp ERR! stack Error: Could not find any Python installation to use", None),
        (UV, "Because no-such-zzz was not found in the package registry and you require no-such-zzz, we can conclude "
             "that your requirements are unsatisfiable.", None),
        (UV_TREE, "Because there is no version of attrs==1.2.3.4.5 and you require attrs==1.2.3.4.5, we can conclude "
                  "that your requirements are unsatisfiable.", None),
        (PYTHON, "RuntimeError: the token is not valid", None),
        (GROUP, "ModuleNotFoundError: No module named 'x'", None),
        (OLD_SDK, "ModuleNotFoundError: No module named 'mcp.server.fastmcp'", "mcp<2"),
        (ARGPARSE, "serve: error: the following arguments are required: --db-path", "--arg"),
        (NO_PROGRAM, "FileNotFoundError: [Errno 2] No such file or directory: 'git'", "'git'"),
        (NODE, "Error: Cannot find module 'nope'", None),
        (NODE_SPAWN, "Error: spawn docker ENOENT", "'docker'"),
        (SHELL, SHELL, "'ffmpeg'"),
        (LOGGED, "Missing environment variable BRAVE_API_KEY", None),
        (SILENT, SILENT, None),
        ("", None, None),
    ],
    ids=["npm 404", "npm version", "npm file", "npm build", "uv", "uv tree", "python", "group", "old sdk", "argparse",
         "no program", "node", "node spawn", "shell", "logged", "silent", "nothing"],
)  # fmt: skip
def test_the_line_that_says_why_is_found(output: str, cause: str | None, hint: str | None) -> None:
    lines = output.splitlines()
    assert cause_of(lines) == cause
    said = hint_for(cause)
    assert (said is None) if hint is None else (said is not None and hint in said)


@given(st.lists(st.text(max_size=200), max_size=30))
@pytest.mark.long
def test_whatever_is_said_something_short_is_found(lines: list[str]) -> None:
    cause = cause_of(lines)
    assert (cause is None) == (not any(line.strip() for line in lines))
    assert len(cause or "") <= MAX_CAUSE
    hint_for(cause)


def test_what_was_logged_long_before_is_not_the_cause() -> None:
    logged = "Error: the file is not there, so the call failed"
    assert cause_of([logged, "call done", "Error: out of memory"]) == "Error: out of memory"


@pytest.mark.parametrize(
    "cause",
    [
        "TypeError: run() missing 1 argument (in mcp_server_time/server.py)",
        "ModuleNotFoundError: No module named 'mcp'",
        "ModuleNotFoundError: No module named 'mcp.server.mcpserver'",
        "ImportError: cannot import name 'Client' from 'mcp' (/x/mcp/__init__.py)",
        "ImportError: cannot import name 'x' from 'mcp_server_time' (/x/__init__.py)",
    ],
)
def test_a_failure_that_has_nothing_to_do_with_an_older_sdk_is_not_laid_at_its_door(cause: str) -> None:
    assert "older SDK" not in (hint_for(cause) or "")


@pytest.mark.parametrize(
    "cause",
    [
        "ModuleNotFoundError: No module named 'mcp.server.fastmcp'. This is mcp 2.x, where FastMCP was renamed",
        "ImportError: cannot import name 'McpError' from 'mcp' (/x/mcp/__init__.py)",
        "ImportError: cannot import name 'streamablehttp_client' from 'mcp.client.streamable_http' (/x)",
    ],
)
def test_what_only_the_older_sdk_had_says_so(cause: str) -> None:
    assert "mcp<2" in (hint_for(cause) or "")
