"""The zygote, inside the sandbox: a warm interpreter in its own namespaces that forks a confined child for every call.

The server's side of it is `zygote_process.py`, which starts it as ``python -I -S -c "…main(fd)"``, with a socket to
the server at `fd`. The zygote imports nothing but the standard library and what its configuration names. It has one
thread, and nothing secret: no environment, no files, no network.

What it does, in order: find out which layers the machine gives → import and warm up → enter the namespaces, with a
root for each slot → take on every limit that children inherit for free → arrange its memory for forking (`pages.py`) →
serve.

`_forkserver.c` is the fast way to fork; without it `slowpath.py` does the same, at half the speed.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import importlib
import importlib.util
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from types import ModuleType
from typing import Any

from mcp_servers.python_executor.sandbox import landlock, layers, seccomp, slowpath
from mcp_servers.python_executor.sandbox.pages import PAGE, arrange
from mcp_servers.python_executor.sandbox.slowpath import (
    CHROOT,
    DROP_CAPS,
    LANDLOCK,
    NEW_PID,
    OWN_FILTER,
    SET_UID,
)
from mcp_servers.python_executor.sandbox.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    bounding_set_drop,
    detach,
    libc,
    mount,
    pivot_root,
    prctl,
    read_only,
    set_hostname,
    unshare,
)
from mcp_servers.python_executor.sandbox.wire import CHANNEL, MAX_INODES

__all__ = ["main"]

MAX_CONFIG_BYTES = 1 << 18
PR_SET_NAME = 15
SIGKILL = 9
M_ARENA_MAX = -8
UID_BASE = 1000
FOLDERS = ("HOME", "TMPDIR", "MPLCONFIGDIR")
FIRST_FREE_FD = 10
NAMESPACES = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
LANDLOCK_KNOWS_TRUNCATE = 3
MAX_PENDING_SIGNALS = 64
"""And timers. They are counted for all children of a machine together, and for its root."""
DEVICES = ("null", "zero", "full", "random", "urandom")


def main(ctl: int) -> None:
    """Serve the pool at this socket. Returns only in children, which end by themselves."""
    pool = socket.socket(fileno=fcntl.fcntl(ctl, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD))
    os.close(ctl)
    os.dup2(os.open(os.devnull, os.O_RDONLY), CHANNEL)  # a child's channel: nothing else may come to lie there
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    config = json.loads(pool.recv(MAX_CONFIG_BYTES))
    try:
        _Zygote(pool, config).run()
    except BaseException as exc:  # the pool tells whoever waits
        import traceback

        said = {"failed": f"{type(exc).__name__}: {exc}", "traceback": traceback.format_exc()}
        with contextlib.suppress(OSError):
            os.write(2, said["traceback"].encode())  # in a child it is the call's stderr
        with contextlib.suppress(OSError):
            pool.send(json.dumps(said).encode())
        os._exit(1)


class _Zygote:
    """One zygote's way from a plain interpreter to a confined fork server.

    Args:
        config: what `options.zygote_config` makes of the options of a pool.
    """

    def __init__(self, pool: socket.socket, config: dict[str, Any]) -> None:
        self._pool = pool
        self._config = config
        self._started = time.perf_counter()
        self._slots: list[tuple[str, str]] = []
        self._helper: ModuleType | None = None
        self._private = False

    def run(self) -> None:
        config = self._config
        with contextlib.suppress(OSError):
            layers.write("/proc/self/oom_score_adj", "1000")  # when memory runs out, a call ends rather than the server
        found = layers.try_layers()
        tier = layers.tier_of(found)
        if tier > config["min_tier"]:
            self._pool.send(json.dumps({"refused": tier, "layers": found}).encode())
            os._exit(0)
        self._load_helper()
        child = self._warm_up()
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self._private = tier in "AB"
        if self._private:
            self._enter_namespaces(tier)
        else:
            self._make_folders()
        if tier in "AB":
            libc.prctl(PR_SET_NAME, b"sandbox", 0, 0, 0)
        self._limit()
        rulesets = self._make_rulesets(tier)
        outputs = "/outputs" if self._private else f"{config['scratch']}/outputs"
        prepared, pages = arrange(self._helper, child, proc, outputs=outputs, huge_pages=config["huge_pages"])
        status = os.open("self/statm", os.O_RDONLY, dir_fd=proc)
        address_space = int(os.read(status, 200).split()[0]) * PAGE + config["memory_bytes"]
        os.close(status)
        os.close(proc)
        prctl(PR_SET_DUMPABLE, 0)
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
        seccomp.load(seccomp.zygote_filter(processes=config["processes"] or config["fresh"], new_pid=tier in "AB"))
        flags = LANDLOCK
        flags |= {"A": NEW_PID | CHROOT | SET_UID, "B": NEW_PID | CHROOT | DROP_CAPS}.get(tier, DROP_CAPS | OWN_FILTER)
        filter_, places = (
            seccomp.child_filter(truncate=self._landlock >= LANDLOCK_KNOWS_TRUNCATE)
            if flags & OWN_FILTER
            else (b"", b"")
        )
        slots = [
            (root, box, ruleset, *cgroups)
            for (root, box), ruleset, cgroups in zip(self._slots, rulesets, config["cgroups"], strict=True)
        ]
        ready = {
            "tier": tier,
            "layers": found,
            "slow_path": self._helper is None,
            "python": sys.version.split()[0],
            "modules": len(sys.modules),
            "ready_ms": round((time.perf_counter() - self._started) * 1000, 1),
        }
        self._pool.send(json.dumps(ready).encode())
        os.umask(0)
        serve = self._helper.serve if self._helper is not None else slowpath.serve
        arguments = (
            self._pool.fileno(), self._outputs, flags, UID_BASE, landlock.access_mask(self._landlock),
            f"size={config['scratch_bytes']},nr_inodes={MAX_INODES},mode=755", f"{config['scratch']}/trash",
            slots, filter_, places,
            min(config["max_open_files"], resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
            self._process_limit(tier), pages,
        )  # fmt: skip
        serve(*arguments)  # a tuple that stays: freeing it would cost each child eight pages
        # ------------------------------------------------------------------------------------------------ in a child
        folder = "/box/work"
        if tier == "C":  # it has no root of its own
            folder = os.getcwd()
            os.environ.update(dict.fromkeys(FOLDERS, f"{folder[:-4]}tmp"))
        if config["fresh"]:
            _become_fresh(folder, config["processes"])
        child["serve"](folder, prepared)

    def _process_limit(self, tier: str) -> int:
        """Processes and threads for a child; 0 where the limit would count other people's."""
        shared = len(self._slots) if tier == "B" else 0
        return int(self._config["max_processes"]) + shared if tier in "AB" else 0

    # ---------------------------------------------------------------------------------------------------- warming up

    def _load_helper(self) -> None:
        path = self._config["helper"]
        if path is None:
            return
        spec = importlib.util.spec_from_file_location("_forkserver", path)
        assert spec is not None
        assert spec.loader is not None
        self._helper = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._helper)

    def _warm_up(self) -> dict[str, Any]:
        """Import what people use, and run code once, so that children find it done."""
        config = self._config
        sys.path[:] = [*config["stdlib"], *config["packages"]]
        home = f"{config['scratch']}/home"  # what modules write when they are imported goes here, not to the machine
        os.mkdir(home)
        os.environ.clear()
        os.environ.update({**config["environment"], **dict.fromkeys(FOLDERS, home)})
        os.chdir("/")
        libc.mallopt(M_ARENA_MAX, 1)  # an arena for each thread would reserve 64 MB of a call's address space
        for name in config["preimport"]:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        sys.path += config["libraries"]
        for name in config["require"]:
            importlib.import_module(name)
        sys.path[:] = sys.path[: len(sys.path) - len(config["libraries"])]
        os.environ.update(config["environment"])
        tempfile.tempdir = None
        shutil.rmtree(home, ignore_errors=True)
        import _sitebuiltins

        builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D")
        builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D")
        builtins.help = _sitebuiltins._Helper()
        child = load_child(config["source"])
        if config["fresh"]:
            import py_compile

            with contextlib.suppress(OSError):  # each new interpreter would compile it again
                py_compile.compile(config["source"])
        with open(os.devnull, "r+b") as null:
            for fd in (0, 1, 2):
                os.dup2(null.fileno(), fd)
        child["install_alarm"]()
        sys.path.insert(0, "")
        sys.argv = [""]
        return child

    # ----------------------------------------------------------------------------------------------- what it can see

    def _enter_namespaces(self, tier: str) -> None:
        """Build the roots, then leave everything else behind. Afterwards we are pid 1 of our own little machine."""
        config = self._config
        outside = config["scratch"]
        mapper = layers.UserMapper(single=tier == "B")
        if tier == "A":
            unshare(CLONE_NEWNS)
        else:
            unshare(NAMESPACES)
            mapper.map()
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        count = len(config["cgroups"])
        mount("tmpfs", outside, "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=755")
        self._build_root(f"{outside}/root")
        for number in range(count):
            slot = f"{outside}/slots/{number}"
            os.makedirs(slot)
            mount(f"{outside}/root", slot, None, MS_BIND | MS_REC)
            self._slots.append((f"/slots/{number}", f"/slots/{number}/box"))
        os.mkdir(f"{outside}/outputs")
        size = 2 * count * config["file_bytes"]
        mount("tmpfs", f"{outside}/outputs", "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode=1777")
        os.mkdir(f"{outside}/old")
        os.chdir(outside)
        pivot_root(".", "old")
        os.chdir("/")
        detach("/old")
        os.rmdir("/old")
        if tier == "A":
            unshare(NAMESPACES)
            mapper.map()
        set_hostname("sandbox")
        pid = os.fork()
        if pid:  # stays behind as the parent that the server knows, and dies with either
            prctl(PR_SET_PDEATHSIG, SIGKILL)
            self._pool.close()
            os.closerange(3, 1024)
            _, status = os.waitpid(pid, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        prctl(PR_SET_PDEATHSIG, SIGKILL)
        if tier == "A":
            os.setresgid(0, 0, 0)
            os.setgroups([])
            os.setresuid(0, 0, 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL)  # a change of user takes it away
        bounding_set_drop()
        self._outputs = os.open("/outputs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _build_root(self, root: str) -> None:
        """What the code sees: Python, read-only; a few devices; room for a box."""
        os.mkdir(root)
        mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
        for path in self._config["visible"]:
            target = root + path
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.islink(path):
                os.symlink(os.readlink(path), target)
                continue
            if os.path.isdir(path):
                os.makedirs(target, exist_ok=True)
            else:
                open(target, "x").close()
            mount(path, target, None, MS_BIND | MS_REC)
            read_only(target)
        os.mkdir(f"{root}/dev")
        for name in DEVICES:
            open(f"{root}/dev/{name}", "x").close()
            mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
            with contextlib.suppress(OSError):  # its mode and times; what is written to it goes to the device
                read_only(f"{root}/dev/{name}", devices=True)
        os.symlink("/box/tmp", f"{root}/dev/shm")  # noqa: S108 - for semaphores
        os.makedirs(f"{root}/etc", exist_ok=True)
        for name, text in (
            ("passwd", "root:x:0:0::/:/bin/false\nsandbox:x:1000:1000::/tmp:/bin/false\n"),
            ("group", "root:x:0:\nsandbox:x:1000:\n"),
        ):
            with open(f"{root}/etc/{name}", "w") as file:
                file.write(text)
        os.mkdir(f"{root}/box")
        temporary = f"{root}/tmp"  # noqa: S108
        if not os.path.lexists(temporary):  # it is there when Python itself or a package lies below /tmp
            os.symlink("/box/tmp", temporary)
        mount(None, root, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)

    def _make_folders(self) -> None:
        """Without namespaces: a folder for each slot, on the file system that there is."""
        scratch = self._config["scratch"]
        for number in range(len(self._config["cgroups"])):
            os.makedirs(f"{scratch}/{number}", 0o700)
            self._slots.append(("/", f"{scratch}/{number}"))
        os.mkdir(f"{scratch}/trash", 0o700)
        os.mkdir(f"{scratch}/outputs", 0o700)
        self._outputs = os.open(f"{scratch}/outputs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _make_rulesets(self, tier: str) -> list[int]:
        self._landlock = landlock.abi()
        rulesets = []
        for root, _ in self._slots:
            ruleset = landlock.create_ruleset(self._landlock)
            prefix = "" if tier == "C" else root
            for path in self._config["visible"]:
                if not os.path.islink(prefix + path):
                    landlock.grant(ruleset, prefix + path)
            for name in DEVICES:
                landlock.grant(ruleset, f"{prefix}/dev/{name}", write=True)
            if prefix:
                landlock.grant_listing(ruleset, root)
                for name in ("passwd", "group"):
                    landlock.grant(ruleset, f"{prefix}/etc/{name}")
            rulesets.append(ruleset)
        return rulesets

    def _limit(self) -> None:
        """Take on the limits that every child inherits."""
        for kind, bound in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, self._config["file_bytes"]),
            (resource.RLIMIT_MEMLOCK, 0),
            (resource.RLIMIT_MSGQUEUE, 0),
            (resource.RLIMIT_SIGPENDING, MAX_PENDING_SIGNALS),
            (resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        ):
            resource.setrlimit(kind, (bound, bound))


def load_child(source: str) -> dict[str, Any]:
    """Execute child.py in a namespace with builtins of its own."""
    with open(source, encoding="utf-8") as file:
        text = file.read()
    namespace: dict[str, Any] = {
        "__name__": "sandbox",
        "__file__": source,
        "__builtins__": dict(vars(builtins)),
    }
    exec(compile(text, source, "exec"), namespace)  # noqa: S102
    return namespace


def _become_fresh(folder: str, processes: bool) -> None:
    """Put a new interpreter in the place of this child: it inherits nothing of the zygote but the confinement."""
    arguments = [folder, str(int(processes)), *sys.path[1:]]
    source = os.path.join(os.path.dirname(__file__), "fresh.py")
    os.set_inheritable(CHANNEL, True)
    os.execve(sys.executable, [sys.executable, "-I", "-S", source, *arguments], os.environ)
