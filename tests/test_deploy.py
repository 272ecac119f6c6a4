"""The files for containers, checked by what can check them without an engine: linters and schemas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from support import ROOT

from toolscore.app.files import load_settings
from toolscore.app.settings import ENV_PREFIX

DEPLOY = ROOT / "deploy"


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("index", range(6))
def test_the_kubernetes_objects_fit_their_schema(index: int) -> None:
    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert len(objects) == 6
    kubernetes_validate.validate(objects[index], "1.31", strict=True)


def test_the_settings_they_give_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    gateway = next(x for x in objects if x["kind"] == "Deployment" and x["metadata"]["name"] == "toolscore")
    container = gateway["spec"]["template"]["spec"]["containers"][0]
    for environment in (
        compose["services"]["gateway"]["environment"],
        {entry["name"]: entry["value"] for entry in container["env"]},
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                assert name.startswith(ENV_PREFIX)
                patch.setenv(name, value)
            loaded = load_settings(ROOT / "config")
            assert loaded.problems == []
            assert loaded.settings.access.allow_unauthenticated
            assert not loaded.settings.mcp_servers.python_executor.auto_start


def test_compose_publishes_on_loopback_only_and_the_executor_has_no_network() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert all(port.startswith("127.0.0.1:") for port in services["gateway"]["ports"])
    assert services["python-executor"]["network_mode"] == "none"
    for service in services.values():
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
