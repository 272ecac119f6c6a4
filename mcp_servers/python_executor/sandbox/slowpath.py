"""The fork server's loop in plain Python, for machines where the C helper could not be built. Standard library only.

It confines as the helper does and keeps every promise but speed: the parent writes to pages that its children share,
and `flatten` is missing, so a call costs about twice as much.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from mcp_servers.python_executor.sandbox.syscalls import (
    CLONE_NEWPID,
    MS_NODEV,
    MS_NOSUID,
    NUMBERS,
    PR_SET_PDEATHSIG,
    detach,
    libc,
    mount,
    prctl,
    raw,
)
from mcp_servers.python_executor.sandbox.wire import CHANNEL, COMMAND, REPORT, Op

__all__ = ["CHROOT", "DROP_CAPS", "LANDLOCK", "NEW_PID", "OWN_FILTER", "SET_UID", "serve"]

NEW_PID, CHROOT, SET_UID, DROP_CAPS, LANDLOCK, OWN_FILTER = 1, 2, 4, 8, 16, 32
"""How a child is confined; _forkserver.c has the same."""
CAPABILITY_VERSION_3 = 0x20080522
SIGNALS = {
    Op.KILL: signal.SIGKILL, Op.INTERRUPT: signal.SIGALRM, Op.STOP: signal.SIGSTOP, Op.CONTINUE: signal.SIGCONT,
}  # fmt: skip
MAX_FAILURES = 3


class _Slot:
    def __init__(self, root: str, box: str, ruleset: int, cgroups: Sequence[int]) -> None:
        self.root, self.box, self.ruleset, self.cgroups = root, box, ruleset, cgroups
        self.pid = self.id = 0
        self.clean: object = None
        self.allowed = False


def serve(
    ctl: int,
    outputs: int,
    flags: int,
    uid_base: int,
    landlock_access: int,
    tmpfs_options: str,
    trash: str,
    slots: list[tuple[str, str, int, int, int]],
    filter_: bytes,
    places: bytes,
    max_open_files: int,
    max_processes: int,
    pages: bytes,
) -> None:
    """As `_forkserver.serve`: returns in each child, confined, with its channel at descriptor 3."""
    del pages  # worth it only where forks are cheap
    _Loop(
        socket.socket(fileno=os.dup(ctl)), outputs, flags, uid_base, landlock_access, tmpfs_options, trash,
        [_Slot(root, box, ruleset, cgroups) for root, box, ruleset, *cgroups in slots], filter_, places,
        max_open_files, max_processes,
    ).run()  # fmt: skip


@dataclass
class _Loop:
    """What `serve` was given, and how far it is."""

    ctl: socket.socket
    outputs: int
    flags: int
    uid_base: int
    access: int
    tmpfs_options: str
    trash: str
    slots: list[_Slot]
    filter: bytes
    places: bytes
    max_open_files: int
    max_processes: int
    live: int = 0
    target: int = 0
    thrown: int = 0
    next_id: int = 1

    def __post_init__(self) -> None:
        self.pid = os.getpid()
        self.woken, self.wake = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(self.wake, False)

    def run(self) -> None:
        """Returns in a child only."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self.ctl.fileno(), select.POLLIN)
        poll.register(self.woken, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
                else:
                    self._obey()
            if self._reap() or self._grow():
                return

    def _obey(self) -> None:
        try:
            data = self.ctl.recv(COMMAND.size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            for slot in self.slots:
                if slot.pid:
                    os.kill(slot.pid, signal.SIGKILL)
            os._exit(0)
        op, number, at, argument = COMMAND.unpack(data)
        if op == Op.TARGET:
            self.target = min(argument, len(self.slots))
        elif at < len(self.slots) and self.slots[at].pid and self.slots[at].id == number:
            os.kill(self.slots[at].pid, SIGNALS[op])

    def _reap(self) -> bool:
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return False
            number = next((at for at, slot in enumerate(self.slots) if slot.pid == pid), None)
            if number is None:
                continue
            slot = self.slots[number]
            slot.pid = 0
            self.live -= 1
            end = (slot.id, status, used)
            if self.live >= self.target:
                if not self._clean(slot):  # nobody may come for long, and it is memory
                    self._empty(slot)
                self._report(number, end=end)
            elif self._spawn(number, end):
                return True

    def _grow(self) -> bool:
        failures = 0
        for number, slot in enumerate(self.slots):
            if self.live >= self.target or failures >= MAX_FAILURES:
                break
            if not slot.pid:
                before = self.live
                if self._spawn(number, None):
                    return True
                failures += self.live == before
        if failures:  # the pool heard why, and asks again
            self.target = self.live
        return False

    def _spawn(self, number: int, end: tuple[int, int, resource.struct_rusage] | None) -> bool:
        slot = self.slots[number]
        try:
            self._reset(slot)
            with contextlib.ExitStack() as stack:
                ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
                flags = os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
                outputs = [os.open(".", flags, 0o600, dir_fd=self.outputs) for _ in range(2)]
                for fd in outputs:
                    stack.callback(os.close, fd)
                new = CLONE_NEWPID if self.flags & NEW_PID else 0
                pid = libc.syscall(ctypes.c_long(NUMBERS["clone"]), ctypes.c_long(new | signal.SIGCHLD), 0, 0, 0, 0)
                if pid == 0:
                    stack.pop_all()
                    ours.detach()
                    self._confine(slot, number, theirs.detach(), outputs)
                    return True
                if pid < 0:
                    error = ctypes.get_errno()
                    raise OSError(error, os.strerror(error))
                slot.pid, slot.id = pid, self.next_id
                self.next_id += 1
                self.live += 1
                ours.setblocking(False)
                self._report(number, end=end, new_id=slot.id, fds=[ours.fileno(), *outputs])
        except OSError as exc:
            self._report(number, end=end, error=exc.errno or 5)
        return False

    def _report(
        self,
        number: int,
        *,
        end: tuple[int, int, resource.struct_rusage] | None,
        new_id: int = 0,
        error: int = 0,
        fds: Sequence[int] = (),
    ) -> None:
        exit_id, status, faults, user, system, resident = 0, 0, 0, 0, 0, 0
        if end is not None:
            exit_id, status, used = end
            faults, resident = used.ru_minflt, used.ru_maxrss
            user, system = int(used.ru_utime * 1e6), int(used.ru_stime * 1e6)
        data = REPORT.pack(exit_id, number, new_id, status, error, faults, user, system, resident)
        with contextlib.suppress(BrokenPipeError):  # the end of the pool is seen by `_obey`
            socket.send_fds(self.ctl, [data], list(fds))

    def _state(self, slot: _Slot) -> object:
        """Changes when anything in the box does; see the helper."""
        filesystem = os.statvfs(slot.box)
        folders = [os.stat(f"{slot.box}/{name}").st_ctime_ns for name in (".", "work", "tmp")]
        return (filesystem.f_ffree, filesystem.f_bfree, *folders)

    def _clean(self, slot: _Slot) -> bool:
        return bool(self.flags & CHROOT) and slot.clean is not None and slot.clean == self._state(slot)

    def _empty(self, slot: _Slot) -> None:
        """What was in a box goes; see the helper."""
        slot.clean = None
        if self.flags & CHROOT:
            with contextlib.suppress(OSError):
                detach(slot.box)
            return
        os.chmod(slot.box, 0o700)
        for name in ("work", "tmp"):
            self.thrown += 1
            with contextlib.suppress(OSError):
                os.rename(f"{slot.box}/{name}", f"{self.trash}/{self.thrown}")

    def _reset(self, slot: _Slot) -> None:
        if self._clean(slot):
            return
        self._empty(slot)
        if self.flags & CHROOT:
            mount("tmpfs", slot.box, "tmpfs", MS_NOSUID | MS_NODEV, self.tmpfs_options)
        os.mkdir(f"{slot.box}/work", 0o777)
        os.mkdir(f"{slot.box}/tmp", 0o1777)  # noqa: S108
        if not self.flags & CHROOT:
            os.chmod(slot.box, 0o500)  # only work and tmp in it are its child's to write to
        if slot.ruleset >= 0 and (self.flags & CHROOT or not slot.allowed):
            fd = os.open(slot.box, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", self.access, fd)
            raw("landlock_add_rule", slot.ruleset, 1, ctypes.create_string_buffer(rule), 0)
            os.close(fd)
            slot.allowed = True
        if self.flags & CHROOT:
            slot.clean = self._state(slot)

    def _confine(self, slot: _Slot, number: int, channel: int, outputs: Sequence[int]) -> None:
        """In the child. Any failure ends it before it runs anything."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in slot.cgroups:
                if fd >= 0:
                    os.write(fd, b"0")
            if self.flags & CHROOT:
                os.chroot(slot.root)
            os.close(0)
            os.open("/dev/null", os.O_RDONLY)  # at 0; one for all would pass its flags on
            os.chdir("/box/work" if self.flags & CHROOT else f"{slot.box}/work")
            if self.flags & SET_UID:
                uid = self.uid_base + number
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            if self.flags & DROP_CAPS:
                header = struct.pack("=II", CAPABILITY_VERSION_3, 0)
                raw("capset", ctypes.create_string_buffer(header), ctypes.create_string_buffer(24))
            if self.flags & LANDLOCK:
                raw("landlock_restrict_self", slot.ruleset, 0)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if not self.flags & NEW_PID and os.getppid() != self.pid:  # it died before it could take us along
                os._exit(99)
            if self.flags & OWN_FILTER:
                self._own_filter()
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.max_open_files, self.max_open_files))
            if self.max_processes:
                resource.setrlimit(resource.RLIMIT_NPROC, (self.max_processes, self.max_processes))
            os.umask(0o022)
            os.dup2(outputs[0], 1)
            os.dup2(outputs[1], 2)
            os.dup2(channel, CHANNEL)
            raw("close_range", CHANNEL + 1, 0xFFFFFFFF, 0)
        except BaseException:
            os._exit(99)

    def _own_filter(self) -> None:
        """The second seccomp filter, with the child's own pid in it."""
        program = bytearray(self.filter)
        for place in self.places:
            struct.pack_into("I", program, place * 8 + 4, os.getpid())

        class Program(ctypes.Structure):
            _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

        buffer = (ctypes.c_char * len(program)).from_buffer(program)
        raw("seccomp", 1, 0, ctypes.byref(Program(len(program) // 8, ctypes.addressof(buffer))))
