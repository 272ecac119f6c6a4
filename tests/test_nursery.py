"""The nursery that all of the suite's programs come from outlives clients that go at any moment."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.nursery import born, nursery

from toolscore import __version__


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with nursery() as (_, address):
        monkeypatch.setenv("TEST_NURSERY", address)
        yield address


@pytest.mark.parametrize("read", [True, False], ids=["status unread", "pid unread"])
@pytest.mark.long
def test_a_client_that_hangs_up_harms_no_other(address: str, read: bool, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as hasty, open(os.devnull, "r+b") as nothing:
        hasty.connect(address)
        request = {"arguments": ["--version"], "env": dict(os.environ), "cwd": str(tmp_path)}
        socket.send_fds(hasty, [json.dumps(request).encode()], [nothing.fileno()] * 3)
        if read:
            assert json.loads(hasty.recv(4096))["pid"]
            hasty.settimeout(30)
            assert hasty.recv(4096, socket.MSG_PEEK)  # the status is there, and nobody takes it
    with open(tmp_path / "log", "w+b") as log:
        to = log.fileno()
        process = born(["--version"], env=os.environ, cwd=tmp_path, stdin=to, stdout=to, stderr=to)
        assert process.wait(30) == 0
        log.seek(0)
        assert log.read().decode().strip() == __version__
