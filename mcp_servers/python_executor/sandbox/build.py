"""Builds the C helper: at installation, or into a cache for another interpreter. Standard library only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["MODULE", "SOURCE", "build_helper", "describe"]

SOURCE = Path(__file__).with_name("_forkserver.c")
MODULE = "_forkserver"
BUILD_SECONDS = 60
DESCRIBE_SECONDS = 10

_ASK = """
import json, sys, sysconfig
print(json.dumps({
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"), "include": sysconfig.get_path("include"),
    "stdlib": [path for path in sys.path if path], "prefix": sys.base_prefix, "multiarch":
    sysconfig.get_config_var("MULTIARCH") or "", "executable": sys._base_executable or sys.executable,
    "libdir": sysconfig.get_config_var("LIBDIR") or "", "version": sys.version.split()[0],
}))
"""


def describe(python: str) -> dict[str, object]:
    """What a Python is: `version`, `suffix` of its extension modules, `include`, `stdlib`, `prefix`, `executable`, ….

    Raises:
        OSError, ValueError: it cannot be run.
    """
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8"}
    try:
        said = subprocess.run(
            [python, "-I", "-S", "-c", _ASK], capture_output=True, check=True, timeout=DESCRIBE_SECONDS, env=environment
        ).stdout
    except subprocess.SubprocessError as exc:
        raise OSError(f"cannot run {python}: {exc}") from exc
    found: dict[str, object] = json.loads(said)
    return found


def build_helper(include: str, suffix: str, folder: Path) -> Path:
    """Compile the helper into `folder`, whole or not at all.

    Raises:
        OSError: no compiler, no headers, or it does not compile; with the compiler's words.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise OSError("no C compiler found: install gcc")
    target = folder / f"{MODULE}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=folder, suffix=".tmp")
    os.close(handle)
    command = [compiler, "-O2", "-fPIC", "-shared", "-s", f"-I{include}", "-o", made, str(SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        if done.returncode != 0:
            raise OSError(f"the compiler failed: {done.stderr.strip()[-500:]}")
        os.chmod(made, 0o755)  # noqa: S103 - whoever runs the sandbox loads it
        os.replace(made, target)
    except subprocess.TimeoutExpired as exc:
        raise OSError(f"the compiler took longer than {BUILD_SECONDS} s") from exc
    finally:
        Path(made).unlink(missing_ok=True)
    return target
