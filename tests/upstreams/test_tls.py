"""TLS on both sides: servers with certificates of their own authorities, and our own port."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import select
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support import GatewayProcess, odd, running_gateway, toolscore, wait_for
from support.field import field_server

PEM = serialization.Encoding.PEM


class Authority:
    """Gives certificates for this machine; its own stands in `file`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
        self.file = folder / "ca.pem"
        self.file.write_bytes(self._signed(self._name, self._key, authority=True).public_bytes(PEM))

    def _signed(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        here = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(here), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())

    def certificate(self, name: str) -> Path:
        """A file with a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        text = self._signed(subject, key, authority=False).public_bytes(PEM) + key.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = self._folder / f"{name}.pem"
        fresh = file.with_suffix(".new")
        fresh.write_bytes(text)
        fresh.rename(file)
        return file


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.long
def test_a_server_has_a_certificate_of_its_own_authority_and_asks_for_ours(authority: Authority) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    tls.load_cert_chain(authority.certificate("server"))
    tls.verify_mode = ssl.CERT_REQUIRED
    ours = {"ca_file": str(authority.file), "client_cert": str(authority.certificate("client"))}
    with field_server(tls) as server:
        entries = {
            "known": {"url": server.url, **ours},
            "strange": {"url": server.url},
            "unnamed": {"url": server.url, "ca_file": ours["ca_file"]},
            "missing": {"url": server.url, "ca_file": "/no/such.pem"},
        }
        with running_gateway(entries) as gateway:
            gateway.wait_for_state("known", "up")
            assert gateway.text("known__go") == "done"
            for name, said in (
                ("strange", "name its authority with `ca_file`"),
                ("unnamed", ""),
                ("missing", "/no/such.pem cannot be used: No such file"),
            ):
                told = gateway.wait_for_state(name, "down", "failed")["last_error"]
                assert said in told, told


@pytest.mark.fast
def test_what_does_not_go_together_is_refused() -> None:
    from toolscore.core.models import UpstreamSpec

    for entry in (
        {"url": "http://h/mcp", "ca_file": "a"},
        {"command": "x", "client_cert": "a"},
        {"url": "https://h/mcp", "client_key": "a"},
    ):
        with pytest.raises(ValueError, match="client_"):
            UpstreamSpec.model_validate(entry)


@pytest.mark.long
def test_our_own_port_has_a_certificate_that_may_be_renewed(authority: Authority, tmp_path: Path) -> None:
    file = authority.certificate("gateway")
    trusted = ssl.create_default_context(cafile=str(authority.file))
    with running_gateway({"alpha": odd("echo")}, start=False) as gateway:
        gateway.environment["TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__TLS_CERT"] = str(file)
        gateway.start(ready=False)
        url = gateway.url.replace("http", "https", 1)
        with httpx.Client(base_url=url, verify=trusted) as http:

            def ready() -> bool:
                try:
                    return http.get("/api/v1/servers/alpha").json()["data"]["state"] == "up"
                except httpx.TransportError:
                    return False

            wait_for(ready)
            assert f"REST         {url}/api" in gateway.output()
            body = {"tool_id": "alpha__echo", "parameters": {"text": "over TLS"}}
            assert http.post("/execute_tool", json=body).json()["data"]["content"][0]["text"] == "over TLS"
            with pytest.raises(httpx.TransportError):
                gateway.http.get("/livez")
            variables = {"TOOLSCORE_URL": url, "SSL_CERT_FILE": str(authority.file)}
            done = toolscore("call", "alpha__echo", "text=hi", variables=variables)
            assert (done.stdout, done.returncode) == ("hi\n", 0), done.stderr
            assert _over_stdio(variables, tmp_path)["result"]["serverInfo"]["name"] == "toolscore"
            seen = _serial(gateway)
            file.write_text("no certificate")
            wait_for(lambda: "is of no use" in gateway.output(), 60, "for the gateway to look again")
            assert _serial(gateway) == seen
            authority.certificate("gateway")
            wait_for(lambda: _serial(gateway) != seen, 60, "for the new certificate")
            assert http.get("/livez").status_code == 200  # on the old connection


@pytest.mark.long
def test_a_certificate_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    variable = "TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__TLS_CERT"
    for text in (None, "nothing of use"):
        file = tmp_path / "cert.pem"
        if text is not None:
            file.write_text(text)
        done = toolscore("serve", variables={variable: str(file)}, cwd=tmp_path)
        assert done.returncode == 78
        assert f"{file} cannot be used" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.long
def test_connections_that_never_shake_hands_are_counted_and_keep_nobody_else_out(
    authority: Authority, tmp_path: Path
) -> None:
    trusted = ssl.create_default_context(cafile=str(authority.file))
    with (
        running_gateway({}, start=False, settings="limits: {max_connections_per_address: 20}") as gateway,
        contextlib.ExitStack() as stack,
    ):
        gateway.environment["TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__TLS_CERT"] = str(authority.certificate("silent"))
        gateway.start(ready=False)
        url = gateway.url.replace("http", "https", 1)
        from_elsewhere = httpx.HTTPTransport(verify=trusted, local_address="127.0.0.2")
        http = stack.enter_context(httpx.Client(base_url=url, transport=from_elsewhere, timeout=60))

        def answers() -> bool:
            try:
                return http.get("/livez").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(answers)
        with ThreadPoolExecutor(20) as pool:  # as many at once as may be there
            opened = list(pool.map(lambda _: _greeted(gateway, trusted), range(20)))
        assert [connection.recv(15) for connection in opened] == [b"HTTP/1.1 200 OK"] * 20
        for connection in opened:
            connection.close()
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.http_port), timeout=60))
            for _ in range(60)
        ]
        wait_for(lambda: len(select.select(silent, [], [], 0)[0]) >= 40, 60, "for those over the bound to be closed")
        assert answers()
        gateway.stop()  # while some have still not shaken hands
        assert "Traceback" not in gateway.output()


def _greeted(gateway: GatewayProcess, trusted: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", gateway.http_port), timeout=60)
    connection = trusted.wrap_socket(plain, server_hostname="127.0.0.1")
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
    return connection


def _serial(gateway: GatewayProcess) -> int:
    pem = ssl.get_server_certificate(("127.0.0.1", gateway.http_port))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def _over_stdio(variables: dict[str, str], cwd: Path) -> dict[str, object]:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    done = subprocess.run(
        [sys.executable, "-m", "toolscore", "stdio"],
        input=json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}) + "\n",
        capture_output=True, text=True, timeout=180, check=True, cwd=cwd, env={"PATH": "/usr/bin:/bin", **variables},
    )  # fmt: skip
    return dict(json.loads(done.stdout))
