"""Runs a script of the tests in a fork of the nursery, with this process's stdin, stdout and stderr, and ends with it.

forked.py SOCKET SCRIPT [ARGUMENT]...      (needs nothing but the standard library)
"""

import json
import os
import socket
import sys


def main() -> None:
    address, script, *arguments = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    request = {"script": script, "arguments": arguments, "env": dict(os.environ), "cwd": os.getcwd()}
    socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
    for number in (0, 1):
        os.close(number)
    json.loads(connection.recv(4096))
    os._exit(json.loads(connection.recv(4096))["status"] & 0xFF)


if __name__ == "__main__":
    main()
