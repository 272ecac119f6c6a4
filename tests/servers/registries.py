"""Registries on loopback: an MCP registry in the official format, a Python package index, an npm registry.

All three are real servers that real clients (the gateway, uv, npm) talk to; what they hold is the test's.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SERVER = """
import json, os, sys
def main():
    {start}
    for line in sys.stdin:
        message = json.loads(line)
        method, wanted = message.get("method"), message.get("id")
        if wanted is None:
            continue
        if method == "initialize":
            result = {{"protocolVersion": "2025-06-18", "capabilities": {{"tools": {{}}}},
                      "serverInfo": {{"name": "{name}", "version": "1.0.0"}}}}
        elif method == "tools/list":
            result = {{"tools": {tools}}}
        elif method == "tools/call":
            result = {{"content": [{{"type": "text", "text": str({answer})}}]}}
        else:
            result = None
        said = {{"result": result}} if result else {{"error": {{"code": -32601, "message": "no such method"}}}}
        print(json.dumps({{"jsonrpc": "2.0", "id": wanted, **said}}), flush=True)
"""


def server_source(name: str, *, start: str = "pass", answer: str = "'fine'") -> str:
    """A stdio server with one tool, in plain Python.

    Args:
        start: a statement that runs first. answer: an expression: what the tool says; `args` are its arguments.
    """
    tools = [
        {
            "name": "look",
            "description": f"The only tool of {name}",
            "inputSchema": {"type": "object", "properties": {"what": {"type": "string", "default": "x"}}},
            "annotations": {"readOnlyHint": True},
        }
    ]
    return SERVER.format(name=name, tools=repr(tools), start=start, answer=answer)


def wheel(name: str, version: str, source: str) -> bytes:
    """A wheel with one module and a console script of the package's name."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {module}:main\n",
    }
    record = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return packed.getvalue()


def tarball(name: str, version: str, source: str, script: str = "index.js") -> bytes:
    """An npm package with one command."""
    about = {"name": name, "version": version, "bin": {name.rpartition("/")[2]: script},
             "scripts": {"install": "touch /tmp/npm-script-ran"}}  # fmt: skip
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, text in (("package.json", json.dumps(about)), ("index.js", source)):
            data = text.encode()
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


class Registries:
    """Use as `with Registries() as registries`.

    Attributes:
        servers: of the MCP registry: name → its versions, the newest last, as server.json objects.
        down: answers 503. slow: seconds before a file of a package is sent.
        asked: paths of the requests.
    """

    def __init__(self) -> None:
        self.servers: dict[str, list[dict[str, Any]]] = {}
        self.status: dict[str, str] = {}
        self.wheels: dict[str, tuple[str, bytes, str]] = {}
        self.tarballs: dict[str, tuple[str, bytes, str]] = {}
        self.down = False
        self.slow = 0.0
        self.asked: list[str] = []
        self._gate = threading.Event()

    def __enter__(self) -> Registries:
        registries = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registries.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._gate.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What has uv and npm fetch from here, and from nowhere else."""
        return {"UV_DEFAULT_INDEX": f"{self.url}/simple", "UV_INDEX": "", "UV_FIND_LINKS": "",
                "NPM_CONFIG_REGISTRY": f"{self.url}/npm/"}  # fmt: skip

    def publish(self, name: str, version: str = "1.0.0", *, packages: list[dict[str, Any]] | None = None,
                description: str = "a server", **more: Any) -> dict[str, Any]:  # fmt: skip
        """Add a version of a server to the MCP registry."""
        server = {"name": name, "description": description, "version": version, "packages": packages or [], **more}
        self.servers.setdefault(name, []).append(server)
        return server

    def add_wheel(self, name: str, source: str, version: str = "1.0.0", *, digest: str | None = None) -> dict[str, Any]:
        """Add a Python package; its `Package` object for `publish`.

        Args:
            digest: SHA-256 that the index gives for it, if not the true one.
        """
        packed = wheel(name, version, source)
        self.wheels[name] = (version, packed, digest or hashlib.sha256(packed).hexdigest())
        return {"registryType": "pypi", "identifier": name, "version": version, "transport": {"type": "stdio"}}

    def add_tarball(
        self, name: str, source: str, *, integrity: str | None = None, script: str = "index.js"
    ) -> dict[str, Any]:
        """Add an npm package; its `Package` object for `publish`."""
        packed = tarball(name, "1.0.0", source, script)
        true = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()
        self.tarballs[name] = ("1.0.0", packed, integrity or true)
        return {"registryType": "npm", "identifier": name, "version": "1.0.0", "transport": {"type": "stdio"}}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        if self.down:
            self._send(request, 503, b"down")
            return
        parts = urlsplit(request.path)
        path, asked = parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()}
        if path.startswith("/v0.1/servers"):
            self._mcp(request, [unquote(part) for part in path.split("/")[3:]], asked)
        elif path.startswith("/simple/"):
            self._index(request, path.split("/")[2])
        elif path.startswith("/files/"):
            name = path.split("/")[2]
            packed = (self.wheels.get(name) or self.tarballs[unquote(name)])[1]
            if self.slow and request.command != "HEAD":
                self._gate.wait(self.slow)
            self._send(request, 200, packed, "application/octet-stream")
        elif path.startswith("/npm/"):
            self._npm(request, unquote(path[5:]))
        else:
            self._send(request, 404, b"{}")

    def _mcp(self, request: BaseHTTPRequestHandler, rest: list[str], asked: dict[str, str]) -> None:
        if not rest:
            names = [name for name in sorted(self.servers) if name > asked.get("cursor", "")]
            names = [name for name in names if asked.get("search", "").lower() in name.lower()]
            limit = min(int(asked.get("limit", 30)), 2)  # small pages: whoever reads one only misses most
            page = [self._response(name, -1) for name in names[:limit]]
            metadata: dict[str, Any] = {"count": len(page)}
            if len(names) > limit:
                metadata["nextCursor"] = names[limit - 1]
            self._send(request, 200, json.dumps({"servers": page, "metadata": metadata}).encode())
            return
        versions = self.servers.get(rest[0])
        if versions is None:
            self._send(request, 404, b'{"error": "Server not found"}')
            return
        found = [self._response(rest[0], number) for number in reversed(range(len(versions)))]
        self._send(request, 200, json.dumps({"servers": found, "metadata": {"count": len(found)}}).encode())

    def _response(self, name: str, number: int) -> dict[str, Any]:
        versions = self.servers[name]
        official = {
            "status": self.status.get(name, "active"),
            "publishedAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-06-01T00:00:00Z",
            "isLatest": versions[number] is versions[-1],
        }
        return {"server": versions[number], "_meta": {"io.modelcontextprotocol.registry/official": official}}

    def _index(self, request: BaseHTTPRequestHandler, name: str) -> None:
        if name not in self.wheels:
            self._send(request, 404, b"no such project")
            return
        version, _, digest = self.wheels[name]
        file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        page = f'<!DOCTYPE html><html><body><a href="/files/{name}/{file}#sha256={digest}">{file}</a></body></html>'
        self._send(request, 200, page.encode(), "text/html")

    def _npm(self, request: BaseHTTPRequestHandler, name: str) -> None:
        if name not in self.tarballs:
            self._send(request, 404, b'{"error": "Not found"}')
            return
        version, _, integrity = self.tarballs[name]
        file = f"{self.url}/files/{name.replace('/', '%2F')}/x.tgz"
        about = {"name": name, "version": version, "dist": {"tarball": file, "integrity": integrity}}
        said = {"name": name, "dist-tags": {"latest": version}, "versions": {version: about}}
        self._send(request, 200, json.dumps(said).encode())

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json") -> None:
        request.send_response(status)
        request.send_header("content-type", kind)
        request.send_header("content-length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
