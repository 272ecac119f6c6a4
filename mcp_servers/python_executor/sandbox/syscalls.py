"""The system calls that Python does not offer, by ctypes. Standard library only.

Everything raises `OSError` with the kernel's errno and the name of what was tried.
"""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = [
    "ARCHITECTURES",
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MACHINE",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "NUMBERS",
    "PR_SET_DUMPABLE",
    "PR_SET_PDEATHSIG",
    "bounding_set_drop",
    "detach",
    "libc",
    "mount",
    "pivot_root",
    "prctl",
    "raw",
    "read_only",
    "set_hostname",
    "unshare",
]

libc = ctypes.PyDLL(None, use_errno=True)
"""Keeps the interpreter's lock: a fork through it needs no hooks."""

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
ST_FLAGS_KEPT = 0x0002 | 0x0004 | 0x0008 | 0x0400 | 0x0800 | 0x1000
"""nosuid, nodev, noexec, noatime, nodiratime, relatime: a remount in a user namespace may not drop them."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH of the machines that the filters are written for."""

MACHINE = platform.machine()

_TABLE = """
read:0:63 write:1:64 open:2:- close:3:57 stat:4:- fstat:5:80 lstat:6:- poll:7:- lseek:8:62 mmap:9:222
mprotect:10:226 munmap:11:215 brk:12:214 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 pread64:17:67
pwrite64:18:68 readv:19:65 writev:20:66 access:21:- pipe:22:- select:23:- sched_yield:24:124 mremap:25:216
msync:26:227 madvise:28:233 dup:32:23 dup2:33:- pause:34:- nanosleep:35:101 getitimer:36:102 alarm:37:-
setitimer:38:103 getpid:39:172 sendfile:40:71 sendto:44:206 recvfrom:45:207 sendmsg:46:211 recvmsg:47:212
shutdown:48:210 getsockname:51:204 getpeername:52:205 setsockopt:54:208 getsockopt:55:209 exit:60:93 wait4:61:260
kill:62:129 uname:63:160 fcntl:72:25 flock:73:32 fsync:74:82 fdatasync:75:83 truncate:76:45 ftruncate:77:46
getdents:78:- getcwd:79:17 chdir:80:49 fchdir:81:50 rename:82:- mkdir:83:- rmdir:84:- creat:85:- link:86:-
unlink:87:- symlink:88:- readlink:89:- chmod:90:- fchmod:91:52 umask:95:166 gettimeofday:96:169 getrlimit:97:163
getrusage:98:165 sysinfo:99:179 times:100:153 getuid:102:174 getgid:104:176 geteuid:107:175 getegid:108:177
getppid:110:173 getpgrp:111:- setsid:112:157 getgroups:115:158 getresuid:118:148 getresgid:120:150 getpgid:121:155
getsid:124:156 rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 utime:132:-
statfs:137:43 fstatfs:138:44 getpriority:140:141 sched_getparam:143:121 sched_getscheduler:145:120
sched_get_priority_max:146:125 sched_get_priority_min:147:126 mlock:149:228 munlock:150:229 arch_prctl:158:-
setrlimit:160:164 gettid:186:178 time:201:- futex:202:98 sched_setaffinity:203:122 sched_getaffinity:204:123
epoll_create:213:- getdents64:217:61 set_tid_address:218:96 restart_syscall:219:128 fadvise64:221:223
clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115 exit_group:231:94 epoll_wait:232:-
epoll_ctl:233:21 tgkill:234:131 utimes:235:- waitid:247:95 openat:257:56 mkdirat:258:34 newfstatat:262:79
unlinkat:263:35 renameat:264:38 linkat:265:37 symlinkat:266:36 readlinkat:267:78 fchmodat:268:53 faccessat:269:48
pselect6:270:72 ppoll:271:73 set_robust_list:273:99 get_robust_list:274:100 splice:275:76 tee:276:77
utimensat:280:88 epoll_pwait:281:22 signalfd:282:- timerfd_create:283:85 eventfd:284:- fallocate:285:47
timerfd_settime:286:86 timerfd_gettime:287:87 signalfd4:289:74 eventfd2:290:19 epoll_create1:291:20 dup3:292:24
pipe2:293:59 preadv:295:69 pwritev:296:70 prlimit64:302:261 getcpu:309:168 renameat2:316:276 getrandom:318:278
copy_file_range:326:285 preadv2:327:286 pwritev2:328:287 statx:332:291 rseq:334:293 close_range:436:436
faccessat2:439:439 membarrier:324:283 epoll_pwait2:441:441 futex_waitv:449:449 execve:59:221 execveat:322:281
setpgid:109:154 vfork:58:- fork:57:- clone:56:220 clone3:435:435 socket:41:198 socketpair:53:199 ioctl:16:29
prctl:157:167 seccomp:317:277 io_uring_setup:425:425 io_uring_enter:426:426 io_uring_register:427:427
setresuid:117:147 setresgid:119:149 chroot:161:51 landlock_create_ruleset:444:444 landlock_add_rule:445:445
landlock_restrict_self:446:446 mount:165:40 umount2:166:39 capset:126:91 mount_setattr:442:442 pivot_root:155:41
unshare:272:97 setns:308:268 ptrace:101:117 bpf:321:280 keyctl:250:219 perf_event_open:298:241 userfaultfd:323:282
init_module:175:105 personality:135:92 setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7 getxattr:191:8 lgetxattr:192:9
fgetxattr:193:10 listxattr:194:11 llistxattr:195:12 flistxattr:196:13
"""
"""name:x86_64:aarch64, from the kernel's unistd.h; "-" where a machine does not have the call."""

_column = 2 if MACHINE == "aarch64" else 1
NUMBERS = {
    entry.split(":")[0]: int(entry.split(":")[_column]) for entry in _TABLE.split() if entry.split(":")[_column] != "-"
}


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def raw(name: str, *arguments: object) -> int:
    """Make a system call by its name."""
    numbers = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _check(libc.syscall(ctypes.c_long(NUMBERS[name]), *numbers), name)


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    encode = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _check(libc.mount(*encode[:3], ctypes.c_ulong(flags), encode[3]), f"mount {target}")


def read_only(path: str, *, devices: bool = False) -> None:
    """Make a mount, and all mounts below it, read-only, without set-uid programs and, unless asked for, devices."""
    no_devices = 0 if devices else MOUNT_ATTR_NODEV
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | no_devices, 0, 0, 0)
    try:
        raw("mount_setattr", -100, os.fsencode(path), AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    except OSError:  # before Linux 5.12, or refused: the top mount alone
        kept = os.statvfs(path).f_flag & ST_FLAGS_KEPT
        forbidden = MS_NOSUID if devices else MS_NOSUID | MS_NODEV
        mount(None, path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | forbidden | kept)


def detach(path: str) -> None:
    """Unmount, at once for everybody who comes later."""
    _check(libc.umount2(os.fsencode(path), MNT_DETACH), f"unmount {path}")


def pivot_root(new: str, old: str) -> None:
    raw("pivot_root", os.fsencode(new), os.fsencode(old))


def unshare(flags: int) -> None:
    _check(libc.unshare(flags), "unshare")


def set_hostname(name: str) -> None:
    _check(libc.sethostname(name.encode(), len(name)), "sethostname")


def prctl(option: int, value: int = 0) -> int:
    return _check(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def bounding_set_drop() -> None:
    """Drop every capability from the bounding set: no program started later can have one."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            return  # past the last one, or not allowed to: there was none to keep
