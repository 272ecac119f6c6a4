"""The files for containers, checked by what can check them without an engine: linters and schemas."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support import ROOT

from toolscore.app.files import load_settings
from toolscore.app.settings import ENV_PREFIX, Settings
from toolscore.core.seal import new_key

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "toolscore"
KUBERNETES = "1.31"
KEY = "0123456789abcdef" * 2
SHARED: dict[str, Any] = {
    "adminKey": {"value": KEY},
    "database": {"url": "postgresql+asyncpg://toolscore:secret@postgres/toolscore"},
    "redis": {"url": "redis://redis:6379/0"},
    "seal": {"keys": new_key()},
}
VALUES: dict[str, dict[str, Any]] = {
    "one alone": {"replicaCount": 1, "adminKey": {"value": KEY}, "persistence": {"enabled": True}},
    "three": SHARED,
    "secrets of one's own": {
        **{part: {"existingSecret": part.lower()} for part in SHARED},
        "serviceAccount": {"create": False},
        "migrationJob": False,
    },
    "everything": {
        **SHARED,
        "autoscaling": {"enabled": True},
        "ingress": {
            "enabled": True, "className": "nginx", "tls": [{"secretName": "tls", "hosts": ["toolscore.example.com"]}]
        },
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {
            "from": [{"namespaceSelector": {"matchLabels": {"name": "agents"}}}],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        },
        "executor": {
            "autoscaling": {"enabled": True, "waitingMetric": "toolscore_python_calls_waiting"},
            "runtimeClassName": "gvisor",
            "seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/toolscore.json"},
        },
        "servers": {"time": {"command": "uvx", "args": ["mcp-server-time"]}},
        "settings": {"rates": {"per_minute": 600}},
        "env": [{"name": "CRM_TOKEN", "value": "x"}],
        "envFrom": [{"secretRef": {"name": "crm"}}],
        "nodeSelector": {"pool": "tools"},
        "tolerations": [{"key": "tools", "operator": "Exists"}],
        "podAnnotations": {"a": "b"},
        "imagePullSecrets": [{"name": "registry"}],
    },
    "no Python": {**SHARED, "executor": {"replicaCount": 0}},
}  # fmt: skip


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("helm")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(params=VALUES, ids=lambda name: str(name).replace(" ", "-"))
def values(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(VALUES[request.param]))
    return path


def rendered(values: Path) -> list[dict[str, Any]]:
    done = helm("template", "release", str(CHART), "--values", str(values), "--namespace", "tools")
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def gateway_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    deployments = [one for one in objects if one["kind"] == "Deployment"]
    return dict(next(one for one in deployments if not one["metadata"]["name"].endswith("-executor")))


@pytest.mark.long
def test_the_chart_passes_its_linter_and_each_object_its_schema(values: Path) -> None:
    done = helm("lint", str(CHART), "--strict", "--values", str(values))
    assert done.returncode == 0, done.stdout + done.stderr
    objects = rendered(values)
    assert len(objects) >= 8
    for one in objects:
        if one["kind"] != "ServiceMonitor":  # which no schema is here for
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_no_pod_is_told_of_services_in_variables_that_look_like_settings(values: Path) -> None:
    """Kubernetes tells a pod of a service `toolscore` in `TOOLSCORE_PORT` and the like."""
    pods = [one["spec"]["template"]["spec"] for one in rendered(values) if "template" in one.get("spec", {})]
    assert pods
    assert all(pod["enableServiceLinks"] is False for pod in pods)


@pytest.mark.long
def test_what_the_chart_sets_are_settings(values: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    objects = rendered(values)
    (container,) = gateway_of(objects)["spec"]["template"]["spec"]["containers"]
    monkeypatch.setenv("ADMIN_KEY", KEY)
    monkeypatch.setenv("POD_IP", "10.0.0.7")
    for entry in container["env"]:
        if entry["name"].startswith(ENV_PREFIX) and "value" in entry:
            monkeypatch.setenv(entry["name"], entry["value"])
    folder = tmp_path / "config"
    folder.mkdir()
    (config,) = [one for one in objects if one["kind"] == "ConfigMap"]
    for name, text in config["data"].items():
        (folder / name).write_text(text)
    loaded = load_settings(folder)
    assert loaded.problems == []
    settings: Settings = loaded.settings
    assert settings.access.given_keys["admin"].scopes == ("admin",)
    assert not settings.access.local_without_key
    assert not settings.access.allow_unauthenticated
    assert settings.replicas.advertise == "${env:POD_IP}"
    spec = gateway_of(objects)["spec"]["template"]["spec"]
    leaving = settings.servers.leave_seconds + settings.servers.grace_seconds
    assert 2 + leaving < spec["terminationGracePeriodSeconds"]
    assert all("subPath" not in mount for mount in container["volumeMounts"])


def test_every_secret_that_is_named_is_there_or_is_the_operators(values: Path) -> None:
    objects = rendered(values)
    made = {one["metadata"]["name"] for one in objects if one["kind"] == "Secret"}
    wanted = set()
    for one in objects:
        if one["kind"] in ("Deployment", "Job"):
            for container in one["spec"]["template"]["spec"]["containers"]:
                for entry in container.get("env", []):
                    if "valueFrom" in entry and "secretKeyRef" in entry["valueFrom"]:
                        wanted.add(entry["valueFrom"]["secretKeyRef"]["name"])
    given = yaml.safe_load(values.read_text())
    own = {given[part]["existingSecret"] for part in SHARED if "existingSecret" in given.get(part, {})}
    assert wanted <= made | own
    assert not own & made


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "several gateways need database.url"),
        ({**SHARED, "seal": {}}, "several gateways need seal.keys"),
        ({"replicaCount": 1}, "nobody could come in"),
        ({**SHARED, "adminKey": {"value": "short"}}, "fewer than 32 characters"),
        ({**SHARED, "graceSeconds": 60}, "must be below terminationGracePeriodSeconds"),
        ({**SHARED, "replicas": 3}, "replicas"),
    ],
)
def test_what_would_work_badly_is_refused(wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(wrong))
    done = helm("template", "release", str(CHART), "--values", str(path))
    assert done.returncode != 0
    assert said in done.stderr


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("index", range(6))
def test_the_kubernetes_objects_fit_their_schema(index: int) -> None:
    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert len(objects) == 6
    kubernetes_validate.validate(objects[index], KUBERNETES, strict=True)


def test_the_settings_they_give_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    gateway = next(x for x in objects if x["kind"] == "Deployment" and x["metadata"]["name"] == "toolscore")
    container = gateway["spec"]["template"]["spec"]["containers"][0]
    for environment in (
        compose["services"]["gateway"]["environment"],
        {entry["name"]: entry["value"] for entry in container["env"]},
    ):
        loaded = loaded_with(environment, monkeypatch)
        assert loaded.access.allow_unauthenticated
        assert not loaded.mcp_servers.python_executor.auto_start


def loaded_with(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            assert name.startswith(ENV_PREFIX)
            patch.setenv(name, value)
        loaded = load_settings(ROOT / "config")
        assert loaded.problems == []
        return loaded.settings


def test_compose_for_several_gives_settings_and_asks_for_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load((DEPLOY / "compose.replicas.yaml").read_text())["services"]
    environment = {
        name: value.replace("$$", "$").replace(":?}", "}")
        for name, value in services["gateway"]["environment"].items()
        if name != "ADMIN_KEY"
    }
    settings = loaded_with(environment, monkeypatch)
    assert json.loads(environment["TOOLSCORE_ACCESS__GIVEN_KEYS"])["admin"]["scopes"] == ["admin"]
    assert settings.mcp_servers.python_executor.required
    assert not settings.access.allow_unauthenticated
    assert services["balancer"]["ports"] == ["127.0.0.1:8082:8082"]
    assert not any("ports" in services[name] for name in ("gateway", "python-executor", "postgres", "redis"))


def test_compose_publishes_on_loopback_only_and_the_executor_has_no_network() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert all(port.startswith("127.0.0.1:") for port in services["gateway"]["ports"])
    assert services["python-executor"]["network_mode"] == "none"
    for service in services.values():
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
