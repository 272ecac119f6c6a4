"""aiohttp's client is loaded when something is asked with it, and no sooner."""

from __future__ import annotations

import subprocess
import sys

import pytest

from toolscore.upstreams.http_client import http_session

NOT_LOADED = """
import asyncio, sys
import toolscore.endpoints.app
from toolscore.upstreams.http_client import client_errors, http_session

async def run():
    assert client_errors(OSError) == (OSError,)
    async with http_session() as client:
        assert "aiohttp" not in sys.modules
        try:
            async with client.get("http://127.0.0.1:1/"):
                raise AssertionError("port 1 answers")
        except client_errors(OSError) as exc:
            import aiohttp

            assert isinstance(exc, aiohttp.ClientConnectorError), exc
    assert client_errors(OSError) == (aiohttp.ClientError, OSError)

asyncio.run(run())
"""


def test_it_is_loaded_when_something_is_asked_and_its_errors_are_known_then() -> None:
    found = subprocess.run([sys.executable, "-c", NOT_LOADED], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.anyio
async def test_what_was_left_makes_no_session_any_more() -> None:
    async with http_session() as client:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        client.get("http://127.0.0.1:1/")
