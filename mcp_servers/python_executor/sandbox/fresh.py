"""The engine `fresh`, inside the sandbox: a new interpreter that takes the place of a confined child.

It loads the strict filter and serves. Its arguments: the working folder, 1 if processes are allowed, and the module
search path.
"""

import builtins
import os
import sys


def main() -> None:
    folder, processes, *path = sys.argv[1:]
    sys.path.insert(0, os.path.abspath(__file__).partition("/mcp_servers/")[0])
    import _sitebuiltins

    from mcp_servers.python_executor.sandbox import child, seccomp

    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D")
    builtins.help = _sitebuiltins._Helper()
    sys.path[:] = ["", *path]
    sys.argv = [""]
    child.install_alarm()
    prepared = child.Prepared()
    prepared.install()
    seccomp.load(seccomp.zygote_filter(processes=processes == "1", new_pid=True))
    child.serve(folder, prepared)


main()
