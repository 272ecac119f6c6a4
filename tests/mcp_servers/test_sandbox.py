"""Each promise of the sandbox as an attack that is seen to fail: at every tier, and without the C helper."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import ExecutorProcess, executor_process, wait_for

SECRET = "SECRET_OF_THE_SERVER"
TIMEOUT = 3
ENDLESS = 0.2
"""Seconds for code that never ends by itself: it uses CPU time for as long."""
OPTIONS: dict[str, Any] = {"memory_mb": 256, "scratch_mb": 32, "timeout_seconds": 20, "max_output_bytes": 100_000}


@pytest.fixture(scope="module", params=["A", "B", "C", "slow"])
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorProcess]:
    os.environ[SECRET] = "1"
    try:
        with executor_process(request.param, data_dir=str(tmp_path_factory.mktemp("data")), **OPTIONS) as process:
            tier = process.call("1")["_meta"]["toolscore/sandbox"]["tier"]
            assert tier == ("A" if request.param == "slow" else request.param)
            yield process
            assert process.run("1 + 1")["result"] == "2"
    finally:
        del os.environ[SECRET]


def refused(box: ExecutorProcess, code: str, *kinds: str) -> None:
    got = box.run(code)
    assert got["exit"] == "error", got
    assert got["error"]["type"] in (kinds or ("PermissionError",)), got["error"]


# ------------------------------------------------------------------------------------------------- using everything up


def test_a_fork_bomb_does_not_go_off(box: ExecutorProcess) -> None:
    refused(box, "import os\nwhile True: os.fork()")
    refused(
        box, "import subprocess; subprocess.run(['/bin/sh', '-c', 'echo out'])", "PermissionError", "FileNotFoundError"
    )
    refused(box, "import multiprocessing\np = multiprocessing.Process(target=print)\np.start()")


def test_a_thread_bomb_meets_a_limit(box: ExecutorProcess) -> None:
    got = box.run(
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    assert got["exit"] in ("error", "memory")
    assert set(got["limits_hit"]) & {"processes", "memory"}
    assert box.run("1")["result"] == "1"


@pytest.mark.parametrize(
    "code",
    [
        "bytearray(10**9)",
        "x = []\nwhile True: x.append(bytearray(10**6))",
        "import mmap\nx = [mmap.mmap(-1, 64 * 2**20) for _ in range(100)]",
        "'x' * 10**10",
    ],
)
def test_memory_is_bounded(box: ExecutorProcess, code: str) -> None:
    got = box.run(code)
    assert got["exit"] in ("memory", "error", "killed"), got
    assert got["exit"] == "memory" or "memory" in got["error"]["message"].lower()
    assert box.run("len(bytearray(100 * 2**20))")["result"] == str(100 * 2**20)


def test_endless_output_is_bounded(box: ExecutorProcess) -> None:
    for code in ("while True: print('x' * 1000)", "import os\nwhile True: os.write(2, b'x' * 1000)"):
        got = box.run(code)
        assert got["exit"] == "output_limit"
        assert "output" in got["limits_hit"]
        assert max(len(got["stdout"]), len(got["stderr"])) == OPTIONS["max_output_bytes"]


def test_code_that_wrote_too_much_is_ended_at_once(box: ExecutorProcess) -> None:
    code = "import sys, time\nsys.stderr.write('x' * 2 * 10**6)\ntime.sleep(60)"
    for wrote in (code, f"import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\n{code}"):
        got = box.run(wrote, timeout_seconds=30)
        assert (got["exit"], got["limits_hit"]) == ("output_limit", ["output"])  # and its time was not over
    # It has a quarter of a second to say where it stood, which a busy machine may not give it.
    wait_for(lambda: 'File "<code>", line' in box.run(code, timeout_seconds=30)["error"]["traceback"])


def test_a_full_disk_is_the_calls_own(box: ExecutorProcess) -> None:
    got = box.run(
        "import tempfile\nwith open(tempfile.gettempdir() + '/big', 'wb') as f:\n    while True: f.write(b'x' * 2**20)"
    )
    assert got["exit"] == "error"
    assert set(got["limits_hit"]) & {"disk", "file_size"}
    many = "n = 0\nwhile True:\n    open(f'file{n}', 'w').close()\n    n += 1"
    if box.kind != "C":  # which has no file system of its own
        got = box.run(many)
        assert "disk" in got["limits_hit"]
    got = box.run("import os\nopen('f', 'w').write('x' * 10**6), os.listdir('.')")
    assert got["result"] == "(1000000, ['f'])"


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "10**10**8",
        "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
        "import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
        "import time; time.sleep(1000)",
        "import threading; threading.Event().wait()",
    ],
)
def test_code_that_never_ends_is_ended(box: ExecutorProcess, code: str) -> None:
    began = time.monotonic()
    got = box.run(f"print('begun')\n{code}", timeout_seconds=ENDLESS)
    assert got["exit"] == "timeout", got
    assert got["stdout"] == "begun\n"
    assert got["limits_hit"] == ["time"]
    assert time.monotonic() - began < 20


def test_a_timeout_shows_where_the_code_stood(box: ExecutorProcess) -> None:
    got = box.run("def spin():\n    while True: pass\n\nspin()", timeout_seconds=ENDLESS)
    assert got["error"]["traceback"].splitlines()[-2:] == [
        '  File "<code>", line 2, in spin',
        "    while True: pass",
    ]


def test_cpu_time_counts_for_all_threads(box: ExecutorProcess) -> None:
    """Threads that compute without Python's lock use time twice as fast; the clock on the wall ends them anyhow."""
    code = (
        "import threading, hashlib\n"
        "def work():\n    while True: hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**6)\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "[t.start() for t in threads]\n[t.join() for t in threads]"
    )
    got = box.run(code, timeout_seconds=ENDLESS)
    assert got["exit"] == "timeout"


def test_a_crash_is_an_answer(box: ExecutorProcess) -> None:
    deep = "import sys\nsys.setrecursionlimit(10**8)\nx = 0\nfor _ in range(2 * 10**5): x = slice(x)\nrepr(x)"
    for code in (
        deep,
        "import ctypes; ctypes.string_at(0)",
        "import os; os.abort()",
        "import faulthandler; faulthandler._read_null()",
    ):
        got = box.run(f"print('before')\n{code}")
        assert got["exit"] == "killed", got
        assert "SIG" in got["error"]["message"]
        assert got["stdout"] == "before\n"


def test_many_open_files_meet_a_limit(box: ExecutorProcess) -> None:
    got = box.run("import os\nx = []\nwhile True: x.append(os.pipe())")
    assert got["limits_hit"] == ["open_files"]


# --------------------------------------------------------------------------------------------------- harming the others


def test_killing_everything_it_can_see_kills_nobody_else(box: ExecutorProcess) -> None:
    before = {child.pid for child in psutil.Process(box.process.pid).children(recursive=True)}
    number = box.start("import time; time.sleep(0.4); 'alive'")
    code = (
        "import os, signal\n"
        "for pid in [-1, *range(2, 3000)]:\n    try: os.kill(pid, signal.SIGKILL)\n    except OSError: pass\n'done'"
    )
    box.run(code, timeout_seconds=TIMEOUT)
    assert box.wait(number)["result"]["structuredContent"]["result"] == "'alive'"
    assert psutil.pid_exists(box.process.pid)
    assert before & {child.pid for child in psutil.Process(box.process.pid).children(recursive=True)}


def test_what_it_leaves_behind_ends_with_it(box: ExecutorProcess) -> None:
    code = (
        "import threading, time, atexit\n"
        "def stay():\n    while True: time.sleep(0.01)\n"
        "for _ in range(5): threading.Thread(target=stay).start()\n"
        "atexit.register(lambda: time.sleep(100))\n'answered'"
    )
    began = time.monotonic()
    assert box.run(code)["result"] == "'answered'"
    assert time.monotonic() - began < 2
    wait_for(lambda: all(threads < 5 for threads in family(box).values()), 60, "for the threads' end")


def family(box: ExecutorProcess) -> dict[int, int]:
    """The processes below an executor's, and how many threads each has."""
    members = {}
    for one in psutil.Process(box.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            members[one.pid] = one.num_threads()
    return members


def test_other_processes_are_not_seen(box: ExecutorProcess) -> None:
    refused(box, "import os; os.listdir('/proc')", "PermissionError", "FileNotFoundError")
    refused(box, "open('/proc/1/environ').read()", "PermissionError", "FileNotFoundError")
    refused(box, "open('/proc/self/mem', 'rb')", "PermissionError", "FileNotFoundError")


# ------------------------------------------------------------------------------------------------- reading and writing


def test_the_environment_is_empty_of_ours(box: ExecutorProcess) -> None:
    assert SECRET not in box.run("import os; dict(os.environ)")["result"]
    got = box.run(
        "import ctypes\nctypes.CDLL(None).getenv.restype = ctypes.c_char_p\nctypes.CDLL(None).getenv(b'PATH')"
    )
    assert SECRET not in str(got)


@pytest.mark.parametrize(
    "path",
    ["/etc/shadow", "/etc/hostname", "/root/.bashrc", "/root/.profile", "/var/log", "/home", "/sys", "/run", "/srv",
     "/proc/self/environ", "/dev/mem", "/dev/kmsg", "/boot", "/mnt"],
)  # fmt: skip
def test_files_of_the_machine_are_not_seen(box: ExecutorProcess, path: str) -> None:
    code = f"import os\np = {path!r}\nos.listdir(p) if os.path.isdir(p) else open(p, 'rb').read(1)"
    refused(box, code, "PermissionError", "FileNotFoundError", "OSError")


def test_shared_memory_is_ones_own(box: ExecutorProcess) -> None:
    got = box.run("import os; os.listdir('/dev/shm')")
    assert got["result"] == "[]" or got["error"]["type"] == "PermissionError"


def test_no_path_leads_out(box: ExecutorProcess) -> None:
    refused(box, "open('../../../../../../etc/shadow')", "PermissionError", "FileNotFoundError")
    refused(box, "import os\nos.symlink('/etc/shadow', 'link')\nopen('link')", "PermissionError", "FileNotFoundError")
    refused(box, "import os\nos.link('/etc/passwd', 'link')", "PermissionError", "FileNotFoundError", "OSError")
    refused(box, "import os\nos.chroot('.')\n")
    refused(
        box,
        "import os\nfd = os.open('/', os.O_RDONLY)\nos.fchdir(fd)\nos.open('..', os.O_RDWR)",
        "PermissionError",
        "IsADirectoryError",
    )


@pytest.mark.parametrize(
    "path",
    ["/new", "/etc/passwd", "/usr/lib/new", "/dev/new", "/dev/null/x", "{stdlib}/os.py", "{stdlib}/new.py"],
)
def test_nothing_is_written_outside(box: ExecutorProcess, path: str) -> None:
    code = f"import os\np = {path!r}.format(stdlib=os.path.dirname(os.__file__))\nopen(p, 'a').write('x')"
    refused(box, code, "PermissionError", "OSError", "NotADirectoryError", "FileNotFoundError", "IsADirectoryError")


@pytest.mark.long
def test_files_of_a_call_are_its_own(box: ExecutorProcess) -> None:
    write = (
        "import tempfile, os\nopen('mine', 'w').write('secret')\n"
        "open(tempfile.gettempdir() + '/mine', 'w').write('secret')\nos.getcwd()"
    )
    slow = box.start(write + "\nimport time; time.sleep(0.6); os.path.exists('mine')")
    look = (
        "import os, tempfile\nfound = []\n"
        "for top in ('.', '..', '../..', '../../..', '/', tempfile.gettempdir(), '/box', '/slots'):\n"
        "    for at, folders, files in os.walk(top):\n"
        "        found += [at + '/' + name for name in files if name == 'mine']\n"
        "        if at.count('/') > 6: folders.clear()\nfound"
    )
    for _ in range(10):
        assert box.run(look)["result"] == "[]"
    box.wait(slow)
    for _ in range(20):
        box.run(write)
        assert box.run("import os, tempfile; os.listdir('.') + os.listdir(tempfile.gettempdir())")["result"] == "[]"


def test_files_of_earlier_calls_are_out_of_reach_of_who_knows_their_names(box: ExecutorProcess) -> None:
    for _ in range(12):
        box.run("open('secret', 'w').write('of an earlier caller')")
    code = (
        "import os\nhere = os.getcwd()\nscratch = os.path.dirname(os.path.dirname(here))\nfound = []\n"
        "for n in range(1, 60):\n    for path in (f'{scratch}/{n}/work/secret', f'{scratch}/{n}/secret', "
        "f'{scratch}/trash/{n}/secret', *(f'{scratch}/{slot}.{n}/work/secret' for slot in range(8))):\n"
        "        try: found.append(open(path).read())\n        except OSError: pass\nfound"
    )
    assert box.run(code)["result"] == "[]"


def test_modes_and_times_of_the_machines_files_stay(box: ExecutorProcess, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("x")
    victim.chmod(0o600)
    before = victim.stat()
    box.run(
        f"import os, ctypes\nfor what in (lambda p: os.chmod(p, 0o777), lambda p: os.utime(p, (1, 1)), "
        f"lambda p: os.chown(p, 0, 0), lambda p: os.truncate(p, 0), lambda p: os.setxattr(p, 'user.a', b'b')):\n"
        f"    for path in ({str(victim)!r}, os.__file__, '/', '..', '../..', '/tmp', '/dev/null'):\n"
        "        try: what(path)\n        except OSError: pass"
    )
    after = victim.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_size) == (before.st_mode, before.st_mtime_ns, before.st_size)
    assert Path(os.__file__).stat().st_mtime > 1000
    assert Path("/dev/null").stat().st_mtime > 1000
    for _ in range(10):
        code = "import os, tempfile\nopen('f', 'w').write('x')\ntempfile.TemporaryFile()\nos.stat('..').st_mtime > 1000"
        assert box.run(code)["result"] == "True"


def test_one_descriptor_is_not_shared_by_all(box: ExecutorProcess) -> None:
    first = box.run("import fcntl\nfcntl.fcntl(0, fcntl.F_GETFL)")["result"]
    box.run("import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)")
    assert {box.run("import fcntl\nfcntl.fcntl(0, fcntl.F_GETFL)")["result"] for _ in range(10)} == {first}


@pytest.mark.parametrize("command", [8, 10, 15, 1024, 1026, 1031])
def test_descriptors_cannot_be_made_to_watch_or_block_others(box: ExecutorProcess, command: int) -> None:
    """F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ"""
    refused(box, f"import fcntl, os\nfcntl.fcntl(os.open(os.path.dirname(os.__file__), 0), {command}, 1)", "OSError")


def test_locks_do_not_reach_the_files_of_the_machine(box: ExecutorProcess) -> None:
    """Else callers could talk by them, and keep the machine's programs waiting."""
    shared = "import fcntl, os\nfile = open(os.__file__)\n"
    for lock in ("fcntl.flock(file, fcntl.LOCK_EX)", "fcntl.lockf(file, fcntl.LOCK_SH)"):
        code = f"{shared}try:\n    {lock}\nexcept OSError as exc: print(exc.errno)\nprint('done', flush=True)\n"
        running = box.start(f"{code}import time; time.sleep(0.5)")
        while running not in box.answered():
            assert f":{os.stat(os.__file__).st_ino} " not in Path("/proc/locks").read_text()
            time.sleep(0.05)
        assert box.wait(running)["result"]["structuredContent"]["stdout"] in ("done\n", "37\ndone\n")
    assert box.run(f"{shared}import struct\nfcntl.fcntl(file, 37, bytes(32))")["error"]["type"] == "OSError"


def test_a_database_in_a_file_works(box: ExecutorProcess) -> None:
    code = (
        "import sqlite3\nfor n in range(2):\n    with sqlite3.connect('a.db') as db:\n"
        "        db.execute('CREATE TABLE IF NOT EXISTS t (x)'); db.execute('INSERT INTO t VALUES (?)', (n,))\n"
        "sqlite3.connect('a.db').execute('SELECT sum(x), count(*) FROM t').fetchone()"
    )
    assert box.run(code)["result"] == "(1, 2)"


def test_sockets_buffers_stay_small(box: ExecutorProcess) -> None:
    refused(box, "from socket import *\na, b = socketpair()\na.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 24)")


def test_there_are_no_timers_that_are_counted_for_all(box: ExecutorProcess) -> None:
    """They would also wake a session that rests."""
    code = "import ctypes\nctypes.CDLL(None).syscall(222, 1, None, ctypes.byref(ctypes.c_int()))"
    assert box.run(code)["result"] == "-1"
    assert box.run("import signal\nsignal.setitimer(signal.ITIMER_PROF, 5)")["exit"] == "ok"


def test_only_the_working_folder_and_tmp_are_ones_own(box: ExecutorProcess) -> None:
    for _ in range(8):
        box.run(
            "import os\nfor what in (lambda: open('../left', 'w').write('of an earlier call'), "
            "lambda: os.rmdir('../work'), lambda: os.mkdir('../work', 0o500), lambda: os.symlink('/x', '../work')):\n"
            "    try: what()\n    except OSError: pass"
        )
    if box.kind != "B":  # where the box is the child's own, and goes with it
        refused(box, "open('../left', 'w')", "PermissionError", "OSError")
    for _ in range(12):
        got = box.run("import os\nopen('f', 'w').write('x')\nsorted(os.listdir('..')) if os.access('..', 4) else None")
        assert got["exit"] == "ok", got
        assert got["result"] in ("['tmp', 'work']", None), got


def test_deep_and_closed_folders_are_deleted_too(box: ExecutorProcess) -> None:
    for code in (
        "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')\nos._exit(0)",
        "import os\nos.makedirs('a/b/c')\nopen('a/b/c/f', 'w').write('x')\nos.mkdir('closed', 0)",
        "import os\nos.symlink('/etc', 'link')\nos.symlink('nowhere', 'dangling')",
    ):
        assert box.run(code)["exit"] in ("ok", "killed")
    (scratch,) = Path("/dev/shm").glob(f"toolscore-sandbox-{server(box).pid}-*")
    trash = scratch / "trash"
    wait_for(lambda: not trash.exists() or len(os.listdir(trash)) <= 8, 60)
    assert box.run("import os; os.listdir('.')")["result"] == "[]"


def test_what_honest_code_does_with_files_works(box: ExecutorProcess) -> None:
    code = (
        "import os, pathlib, shutil, tempfile, zipfile, sqlite3\n"
        "pathlib.Path('a').touch()\npathlib.Path('a').touch()\nopen('a', 'w').write('x' * 99)\nos.truncate('a', 9)\n"
        "shutil.copy2('a', 'b')\nos.makedirs('t/u')\nshutil.copytree('t', 'v')\nshutil.move('b', 'v/b')\n"
        "with zipfile.ZipFile('z.zip', 'w') as z: z.write('v/b')\n"
        "with tempfile.TemporaryDirectory() as d: open(d + '/x', 'w').close()\n"
        "c = sqlite3.connect('s.db')\nc.execute('pragma journal_mode=wal')\n"
        "c.execute('create table t (a)')\nc.commit()\n"
        "os.path.getsize('v/b'), os.path.isdir('v/u'), zipfile.ZipFile('z.zip').namelist()"
    )
    assert box.run(code)["result"] == "(9, True, ['v/b'])"
    code = "from concurrent.futures import ThreadPoolExecutor as T\nwith T(4) as t: x = list(t.map(abs, [-1, 2]))\nx"
    assert box.run(code)["result"] == "[1, 2]"
    if box.kind != "C":  # which sees no shared memory
        code = "from multiprocessing.pool import ThreadPool\nwith ThreadPool(2) as t: x = t.map(abs, [-1, 2])\nx"
        assert box.run(code)["result"] == "[1, 2]"


def test_memory_of_files_comes_back_when_their_call_has_ended(box: ExecutorProcess) -> None:
    before = psutil.virtual_memory().shared
    numbers = [box.start("open('f', 'wb').write(bytes(15 * 2**20))\nimport time; time.sleep(0.3)") for _ in range(14)]
    for number in numbers:
        box.wait(number)
    wait_for(lambda: psutil.virtual_memory().shared < before + 80 * 2**20, 60, "for the memory of files")


@pytest.mark.long
def test_what_calls_write_does_not_pile_up(box: ExecutorProcess) -> None:
    """Where a call has no file system of its own, its files are added up while it runs, and deleted after it."""
    for _ in range(20):
        box.run("open('f', 'wb').write(bytes(9 * 2**20))")  # too large to come back with the answer
    if box.kind == "C":
        code = (
            "n = 0\nwhile True:\n    open(f'f{n}', 'wb').write(bytes(4 * 2**20))\n    n += 1\n"
            "    __import__('time').sleep(0.02)"
        )
        got = box.run(code)
        assert (got["exit"], got["limits_hit"]) == ("killed", ["disk"]), got
    (scratch,) = Path("/dev/shm").glob(f"toolscore-sandbox-{server(box).pid}-*")

    def size() -> int:
        total = 0
        for folder, _, files in os.walk(scratch):  # which passes over what is being deleted
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(f"{folder}/{file}").st_size
        return total

    wait_for(lambda: size() < 2**20, 60)


def server(box: ExecutorProcess) -> psutil.Process:
    """The executor; what lowers its privileges has become it."""
    return psutil.Process(box.process.pid)


# ---------------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    "arguments",
    ["AF_INET, SOCK_STREAM", "AF_INET, SOCK_DGRAM", "AF_INET, SOCK_RAW", "AF_INET6, SOCK_STREAM",
     "AF_UNIX, SOCK_STREAM",
     "AF_UNIX, SOCK_DGRAM", "AF_NETLINK, SOCK_RAW", "AF_PACKET, SOCK_RAW", "AF_VSOCK, SOCK_STREAM",
     "AF_ALG, SOCK_SEQPACKET"],
)  # fmt: skip
def test_there_is_no_network(box: ExecutorProcess, arguments: str) -> None:
    refused(box, f"from socket import *\nsocket({arguments})")


def test_whoever_wants_the_network_or_a_program_is_told(box: ExecutorProcess) -> None:
    got = box.run("import socket; socket.create_connection(('192.0.2.1', 80), 1)")
    assert got["error"]["message"].endswith(": the sandbox has no network")
    got = box.run("import urllib.request; urllib.request.urlopen('http://example.com')")
    assert got["error"]["message"].endswith(": the sandbox has no network")
    got = box.run("import subprocess; subprocess.run(['ls'])")
    assert got["error"]["message"].endswith(": code may not start programs here")


def test_asyncio_works_without_a_network(box: ExecutorProcess) -> None:
    code = "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 'slept'\nasyncio.run(f())"
    assert box.run(code)["result"] == "'slept'"
    assert (
        box.run("import asyncio\nawait asyncio.sleep(0.01)\nawait asyncio.sleep(0, 'top level')")["result"]
        == "'top level'"
    )


# ------------------------------------------------------------------------------------------------------- the kernel


@pytest.mark.parametrize(
    ("name", "number", "arguments"),
    [
        ("ptrace", 101, (0, 0, 0, 0)), ("mount", 165, (b"none", b"/", b"tmpfs", 0, 0)), ("umount2", 166, (b"/", 0)),
        ("chroot", 161, (b".",)),
        ("pivot_root", 155, (0, 0)), ("bpf", 321, (0, 0, 0)), ("keyctl", 250, (0, 0, 0, 0, 0)),
        ("add_key", 248, (0, 0, 0, 0, 0)),
        ("io_uring_setup", 425, (1, 0)), ("perf_event_open", 298, (0, 0, -1, -1, 0)), ("userfaultfd", 323, (0,)),
        ("unshare", 272, (0x10000000,)), ("setns", 308, (3, 0)), ("init_module", 175, (0, 0, 0)),
        ("finit_module", 313, (0, 0, 0)),
        ("process_vm_readv", 310, (1, 0, 0, 0, 0, 0)), ("kexec_load", 246, (0, 0, 0, 0)), ("reboot", 169, (0, 0, 0, 0)),
        ("swapon", 167, (0, 0)), ("open_by_handle_at", 304, (0, 0, 0)), ("memfd_create", 319, (0, 0)),
        ("personality", 135, (0,)),
        ("quotactl", 179, (0, 0, 0, 0)), ("syslog", 103, (0, 0, 0)), ("settimeofday", 164, (0, 0)),
        ("mknod", 133, (0, 0, 0)),
        ("clone3", 435, (0, 0)), ("pidfd_open", 434, (1, 0)), ("fsopen", 430, (0, 0)), ("open_tree", 428, (0, 0, 0)),
        ("clone(NEWUSER)", 56, (0x10000011, 0, 0, 0, 0)), ("clone(NEWPID)", 56, (0x20000011, 0, 0, 0, 0)),
        ("fork", 57, ()),
        ("vfork", 58, ()), ("execve", 59, (0, 0, 0)), ("socket", 41, (2, 1, 0)), ("prctl(seccomp)", 157, (22, 0, 0)),
        ("landlock_create_ruleset", 444, (0, 0, 1)), ("setuid", 105, (0,)), ("setresuid", 117, (0, 0, 0)),
        ("iopl", 172, (3,)),
    ],
)  # fmt: skip
def test_the_kernel_is_out_of_reach(
    box: ExecutorProcess, name: str, number: int, arguments: tuple[int | bytes, ...]
) -> None:
    if os.uname().machine != "x86_64":
        pytest.fail("the numbers are those of x86-64: add this machine's")
    code = (
        f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\ngiven = ({number}, *{arguments!r})\n"
        "result = libc.syscall(*[x if isinstance(x, bytes) else ctypes.c_long(x) for x in given])\n"
        "result, ctypes.get_errno()"
    )
    result, error = eval(box.run(code)["result"])
    assert result == -1, name
    # EPERM, EACCES, ENOSYS, and EINVAL for users that there are none of
    assert error in ((1, 13, 38, 22) if name == "setresuid" else (1, 13, 38)), (name, error)


def test_another_machines_calls_are_deadly(box: ExecutorProcess) -> None:
    """32-bit calls have other numbers, and would go past the filter."""
    code = (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(bytes.fromhex('b8140000 00cd80c3'.replace(' ', '')))\n"  # mov eax, 20; int 0x80; ret
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    )
    got = box.run(code)
    assert got["exit"] == "killed"
    assert "SIGSYS" in got["error"]["message"]


def test_there_are_no_capabilities_and_none_to_gain(box: ExecutorProcess) -> None:
    code = (
        "import ctypes, struct\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "header = ctypes.create_string_buffer(struct.pack('II', 0x20080522, 0))\n"
        "data = ctypes.create_string_buffer(24)\n"
        "data[0:24] = struct.pack('6I', 0xffffffff, 0xffffffff, 0, 0, 0, 0)\n"
        "set_all = libc.syscall(126, header, data)\n"
        "import os\ntry:\n    os.setuid(0)\n    root = os.getuid() == 0\nexcept OSError: root = False\n"
        "set_all, root, libc.prctl(39, 0, 0, 0, 0)"
    )
    got = box.run(code)
    assert got["result"].startswith("(-1, False,"), got


# -------------------------------------------------------------------------------------------------- the result channel


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.close(3)",
        "import os; os.closerange(0, 100)",
        "import os; os.write(3, b'x' * 100)",
        "import os; os.write(3, bytes(4) + b'garbage')",
        "import os; os.write(3, b'\\xff\\xff\\xff\\x7f' + b'x' * 1000)",
        "import os\nwhile True: os.write(3, b'\\x10\\x00\\x00\\x00' + b'x' * 100000)",
        "import os; os.dup2(0, 3)",
        "import socket; socket.socket(fileno=3).shutdown(2)",
        "import os; os.read(3, 100)",
    ],
)
def test_the_result_channel_belongs_to_the_sandbox(box: ExecutorProcess, code: str) -> None:
    """Whatever it does to the channel, the code reaches no one's result but its own, and gets an answer."""
    others = [box.start(f"import time; time.sleep(0.1); {number}") for number in range(3)]
    got = box.run(code, timeout_seconds=ENDLESS)
    assert got["exit"] in ("killed", "timeout", "error"), got
    results = [box.wait(number)["result"]["structuredContent"]["result"] for number in others]
    assert results == ["0", "1", "2"]


@pytest.mark.parametrize(
    "answer",
    [
        "head(error=('T', 'm', 't', 'made up by the code'))",
        "head(error=('T', 'm', 't' * 2**20, ''))",
        "head(result='x' * 8 * 2**20)",
        "head(files=[('../../.bashrc', b'x')])",
        "head(files=[('/etc/passwd', b'x')])",
        "head(files=[('a\\0b', b'x')])",
        "head(files=[('f', b'x')] * 5000)",
        "head(images=[b'x'] * 5000)",
        "head(result='x')[:-5] + b'\\xff\\xff\\xff\\x00x'",
        "head(result='x', count=60_000)",
    ],
)
def test_a_forgery_that_no_child_would_send_is_refused(box: ExecutorProcess, answer: str) -> None:
    code = (
        "import os, struct\n"
        "def blob(x):\n    x = x if isinstance(x, bytes) else x.encode()\n    return struct.pack('<I', len(x)) + x\n"
        "def head(result=None, error=(), images=(), files=(), count=None):\n"
        "    body = blob(result) if result is not None else b''\n"
        "    body += b''.join(map(blob, error)) + b''.join(map(blob, images))\n"
        "    body += b''.join(blob(path) + blob(data) for path, data in files)\n"
        "    flags = (result is not None) | (2 if error else 0)\n"
        "    n = len(images) if count is None else count\n"
        "    return struct.pack('<IBBHH', 6 + len(body), 0, flags, n, len(files)) + body\n"
        f"data = {answer}\n"
        "while data: data = data[os.write(3, data):]\nos._exit(0)"
    )
    got = box.run(code, timeout_seconds=TIMEOUT)
    assert got["exit"] == "killed", {**got, "stdout": got["stdout"][:100]}
    assert got["files"] == []


def test_a_well_formed_forgery_is_only_ones_own_answer(box: ExecutorProcess) -> None:
    from mcp_servers.python_executor.sandbox.wire import Answer, encode_answer

    others = [box.start(f"import time; time.sleep(0.1); {number}") for number in range(3)]
    forged = encode_answer(Answer("ok", "'forged'"))
    got = box.run(f"import os; os.write(3, {forged!r}); os._exit(0)")
    assert got["result"] == "'forged'"
    assert [box.wait(number)["result"]["structuredContent"]["result"] for number in others] == ["0", "1", "2"]


def test_patches_do_not_reach_the_next_call(box: ExecutorProcess) -> None:
    patch = (
        "import builtins, json, os, sys, random, io\n"
        "builtins.print = builtins.len = builtins.repr = builtins.str = None\njson.dumps = lambda *a: 'forged'\n"
        "os.listdir = os.write = os._exit = None\nsys.modules.clear()\nsys.path.clear()\n"
        "builtins.leak = 1\nopen('left', 'w')"
    )
    for _ in range(5):
        box.run(patch, timeout_seconds=TIMEOUT)
        got = box.run(
            "import json, os, builtins\nprint(len('abc'), json.dumps([1]), os.listdir('.'), hasattr(builtins, 'leak'))"
        )
        assert got["stdout"] == "3 [1] [] False\n"


@pytest.mark.parametrize(
    ("code", "exit_"),
    [
        ("import sys; sys.exit()", "ok"), ("import sys; sys.exit(0)", "ok"), ("import sys; sys.exit(3)", "error"),
        ("import sys; sys.exit('no')", "error"), ("exit()", "ok"), ("quit(1)", "error"), ("raise SystemExit", "ok"),
        ("import os; os._exit(0)", "killed"), ("import os; os._exit(7)", "killed"), ("import os; os.abort()", "killed"),
        ("import sys; sys.exit('x' * 200_000)", "error"),
        ("raise type('E' * 5000, (Exception,), {})('y' * 10**6)", "error"),
        ("raise KeyboardInterrupt", "error"), ("raise GeneratorExit", "error"),
        ("import _thread; _thread.interrupt_main()\nwhile True: pass", "error"),
        ("import signal; signal.raise_signal(signal.SIGINT)", "error"),
        ("import ctypes; ctypes.CDLL(None).exit(0)", "killed"),
        ("import ctypes; ctypes.CDLL(None)._exit(0)", "killed"),
        ("import sys; sys.stdout.close(); sys.stderr.close()", "ok"),
        ("import sys; del sys.stdout, sys.stderr", "ok"), ("raise BaseException", "error"),
        ("import faulthandler; faulthandler._fatal_error_c_thread()", "killed"),
    ],
)  # fmt: skip
def test_every_way_to_leave_has_an_answer(box: ExecutorProcess, code: str, exit_: str) -> None:
    got = box.run(code, timeout_seconds=TIMEOUT)
    assert got["exit"] == exit_, got
    assert (got["error"] is None) == (exit_ == "ok")


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("'\\ud800'", "'\\ud800'"),
        ("'a\\0b'", "'a\\x00b'"),
        ("lambda: 1", "<function <lambda> at"),
        ("class A:\n    def __repr__(self): 1 / 0\nA()", "<A whose repr failed: ZeroDivisionError>"),
        ("class A:\n    def __repr__(self): return 7\nA()", "<A whose repr failed: TypeError>"),
        ("x = []\nx.append(x)\nx", "[[...]]"),
        ("float('nan'), 10**30, b'\\xff'", "(nan, 1000000000000000000000000000000, b'\\xff')"),
        ("'x' * 200_000", "'xxxx"),
    ],
)
def test_odd_results_have_a_defined_form(box: ExecutorProcess, code: str, result: str) -> None:
    got = box.run(code)
    assert got["exit"] == "ok"
    assert got["result"].startswith(result)
    assert len(got["result"]) <= 100_001


def test_odd_code_has_a_defined_answer(box: ExecutorProcess) -> None:
    assert box.run("x = 'a\0b'")["error"]["type"] in ("SyntaxError", "ValueError")
    assert box.run("'\ud800'")["result"] == "'\ufffd'"
    assert box.run("# " + "x" * 9_999_000 + "\n1 + 1")["result"] == "2"
    assert box.run("print(input())", input="ä\ud800\0b\n")["stdout"] == "ä\ufffd\0b\n"
    assert box.run("(" * 10_000)["exit"] in ("error", "memory")
    assert box.run("print('ü \ud83d\ude00')")["stdout"] == "ü 😀\n"
