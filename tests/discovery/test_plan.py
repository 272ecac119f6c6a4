"""What installing would do, and what may be installed: from a catalog's word alone, without a gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from toolscore.core.errors import InstallFailed, InvalidArguments, NotAllowedByPolicy, ToolScoreError
from toolscore.discovery import Entry, InstallRule, InstallRules, Plan, Wish
from toolscore.discovery.catalog.server_json import entries_of
from toolscore.discovery.install.failure import StepFailed
from toolscore.discovery.install.fetch import fetcher_of
from toolscore.discovery.install.fetch.npm import server_script
from toolscore.discovery.install.plan import check_allowed, plan_for
from toolscore.discovery.install.policy import HOMES, allowing_rule, check_url, check_variable
from toolscore.discovery.install.prove import asks_for_account, inferred_arguments
from toolscore.discovery.install.wish import environment_of, image_of, wish_for
from toolscore.upstreams.process.old_sdk import needs_old_sdk

FOLDER = Path("/data/servers")
PYPI = {"registryType": "pypi", "identifier": "some-server", "version": "1.0.0"}


def entry(*, vouched: bool = True, **server: Any) -> Entry:
    """As a registry gives it, cleaned."""
    page = {"servers": [{"name": "org.nobody/asks", "version": "1.0.0", **server}]}
    (found,) = entries_of(page, "registry", vouched=vouched)
    return found


def planned(rules: InstallRules | None = None, /, vouched: bool = True, **wish: Any) -> Plan:
    server = {key: wish.pop(key) for key in ("packages", "remotes", "name") if key in wish}
    return plan_for(Wish(entry(vouched=vouched, **server), **wish), rules or InstallRules(), FOLDER, {"toolscore"})


def test_a_value_with_a_place_to_fill_is_not_given() -> None:
    header = {"name": "Authorization", "value": "Bearer {api_key}", "isRequired": True, "isSecret": True}
    plan = planned(remotes=[{"type": "streamable-http", "url": "https://mcp.example.com/mcp", "headers": [header]}])
    assert plan.needs == ["Authorization"]
    assert "{api_key}" not in str(plan.sets)
    (need,) = entry(remotes=[{"type": "streamable-http", "url": "https://a.example/", "headers": [header]}]).needs()
    assert need["description"] == "as Bearer {api_key}"
    argument = {"type": "named", "name": "--db", "value": "{dbpath}", "isRequired": True}
    assert planned(packages=[{**PYPI, "packageArguments": [argument]}]).needs_arguments == ["db"]


def test_an_odd_schema_infers_nothing_and_breaks_nothing() -> None:
    for required in (True, [["a"]], "a", None):
        assert inferred_arguments({"type": "object", "required": required}) == {}


def rules_of(*allow: dict[str, Any], **more: Any) -> InstallRules:
    return InstallRules(allow=tuple(InstallRule(**rule) for rule in allow), **more)


@pytest.mark.parametrize(
    ("server", "error", "expected"),
    [
        ({"packages": [{"registryType": "npm", "identifier": "x", "version": "1.0.0",
                        "runtimeArguments": [{"type": "named", "name": "--registry", "value": "http://evil"}]}]},
         NotAllowedByPolicy, "--registry"),
        ({"packages": [{**PYPI, "registryBaseUrl": "https://packages.acme.example/simple"}]},
         InvalidArguments, "in the registry 'packages.acme.example'"),
        ({"packages": [{"registryType": "npm", "identifier": "x", "version": "1.0.0",
                        "registryBaseUrl": "https://npmjs.org.evil.example"}]},
         InvalidArguments, "in the registry 'npmjs.org.evil.example'"),
        ({"packages": [{**PYPI, "registryBaseUrl": "https://[::1"}]}, InvalidArguments, "in the registry"),
        ({"packages": [{**PYPI, "registryBaseUrl": 7}]}, InvalidArguments, "in the registry '7'"),
        ({"packages": [{"registryType": "pypi", "identifier": "--index-url=http://evil", "version": "1.0.0"}]},
         InvalidArguments, "no name of a package"),
        ({"packages": [{"registryType": "pypi", "identifier": "x", "version": ">=1"}]},
         InvalidArguments, "no exact version"),
        ({"packages": [{"registryType": "pypi", "identifier": "x", "version": "1.0.0",
                        "packageArguments": [{"type": "positional", "value": "${env:SECRET_OF_THE_GATEWAY}"}]}]},
         NotAllowedByPolicy, "refers to a variable of this machine"),
        ({"packages": [{"registryType": "pypi", "identifier": "x", "version": "1.0.0",
                        "environmentVariables": [{"name": "API_KEY", "isRequired": True, "isSecret": True}]}]},
         InvalidArguments, "needs API_KEY"),
        ({"packages": [{"registryType": "pypi", "identifier": "x", "version": "1.0.0", "packageArguments": [
            {"type": "named", "name": "--k=${file:/etc/hostname}", "value": "y"}]}]},
         NotAllowedByPolicy, "refers to a variable of this machine"),
        ({"packages": [{"registryType": "pypi", "identifier": "x", "version": "1.0.0",
                        "environmentVariables": [{"name": "LD_DEBUG_OUTPUT", "value": "/tmp/written"}]}]},
         NotAllowedByPolicy, "steers more than a server"),
        ({"packages": [{"registryType": "oci", "identifier": "docker.io/x/y", "version": "1.0.0",
                        "environmentVariables": [{"name": "DOCKER_HOST", "value": "tcp://evil"}]}]},
         NotAllowedByPolicy, "steers more than a server"),
        ({"packages": [{"registryType": "pypi", "identifier": "x\n", "version": "1.0.0"}]},
         InvalidArguments, "no name of a package"),
        ({"remotes": [{"type": "streamable-http", "url": "https://[::1"}]},
         InvalidArguments, "no address"),
        ({"remotes": [{"type": "streamable-http", "url": "https://{tenant}.example.com/mcp"}]},
         InvalidArguments, "must be filled in"),
        ({"packages": [{"registryType": "nuget", "identifier": "x", "version": "1.0.0"}, {
            "registryType": "pypi", "identifier": "x", "version": "1.0.0",
            "environmentVariables": [{"name": "PASSPHRASE", "isRequired": True, "isSecret": True}]}]},
         InvalidArguments, "needs PASSPHRASE"),
        ({"packages": [{"registryType": "nuget", "identifier": "x", "version": "1.0.0"}]},
         InvalidArguments, "no package that can be installed"),
        ({"packages": [{**PYPI, "packageArguments": [{"valueHint": "folder", "isRequired": True}]}]},
         InvalidArguments, "needs folder in `arguments`"),
        ({"packages": [{**PYPI, "packageArguments": [{"valueHint": "folder", "format": "filepath",
                                                      "isRequired": True}]}]},
         InvalidArguments, "needs a folder to work on"),
        ({"remotes": [{"type": "streamable-http", "url": "http://example.com/mcp"}]},
         NotAllowedByPolicy, "no https address"),
        ({"remotes": [{"type": "streamable-http", "url": "https://user:pass@example.com/mcp"}]},
         InvalidArguments, "no address of a server"),
        ({"remotes": [{"type": "sse", "url": "https://example.com/sse"}]},
         InvalidArguments, "streamable HTTP"),
    ],
)  # fmt: skip
def test_what_a_catalog_may_not_ask_for(server: dict[str, Any], error: type[ToolScoreError], expected: str) -> None:
    wish = Wish(entry(**server), approved=True)
    with pytest.raises(error) as caught:
        check_allowed(wish, plan_for(wish, InstallRules(), FOLDER))
    assert expected in f"{caught.value.message} {caught.value.suggestion}"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_remote_servers_are_at_public_addresses(host: str) -> None:
    wish = Wish(entry(remotes=[{"type": "streamable-http", "url": f"https://{host}:1/mcp"}]))

    async def fetch() -> None:
        async with aiohttp.ClientSession() as http:
            plan = plan_for(wish, InstallRules(), FOLDER)
            await fetcher_of("remote", InstallRules(), http, http).fetch(wish, plan, FOLDER)

    with pytest.raises(StepFailed, match="a private address, and these are not allowed"):
        asyncio.run(fetch())


def test_a_remote_server_on_this_network_needs_a_setting() -> None:
    with pytest.raises(NotAllowedByPolicy):
        check_url("http://10.0.0.1/mcp", private=False)
    check_url("http://10.0.0.1/mcp", private=True)
    with pytest.raises(NotAllowedByPolicy):
        check_url("ftp://10.0.0.1/mcp", private=True)


def test_a_plan_says_exactly_what_will_be_done() -> None:
    package = {
        **PYPI,
        "environmentVariables": [{"name": "FILE", "value": "{home}/notes"}, {"name": "KEY", "isRequired": True}],
        "packageArguments": [{"type": "named", "name": "--mode", "default": "fast"}, {"value": "notes"}],
    }  # fmt: skip
    plan = planned(packages=[package])
    assert (plan.server_id, plan.name, plan.kind) == ("asks", "org.nobody/asks", "pypi")
    assert [command[:3] for command in plan.commands] == [
        ["uv", "venv", "--quiet"], ["uv", "pip", "compile"], ["uv", "pip", "sync"],
    ]  # fmt: skip
    assert all("--only-binary" in command for command in plan.commands[1:])
    assert "--require-hashes" in plan.commands[2]
    assert plan.run == "some-server==1.0.0 --mode fast notes"
    assert plan.sets == {"FILE": "/data/servers/asks/home/notes"}
    assert plan.needs == ["KEY"]
    assert (plan.confined, plan.network, plan.allowed_by) == (True, False, None)
    builds = planned(InstallRules(source_builds=True), packages=[package])
    assert not any("--only-binary" in command for command in builds.commands)
    npm = planned(packages=[{**PYPI, "registryType": "npm"}])
    assert all("--ignore-scripts" in command for command in npm.commands)
    assert npm.run == "some-server@1.0.0"
    remote = planned(remotes=[{"type": "streamable-http", "url": "https://example.com/mcp"}])
    assert (remote.commands, remote.confined, remote.network) == ([], False, True)


def test_the_digest_stands_for_everything_that_is_approved() -> None:
    plan = planned(packages=[PYPI])
    same = planned(rules_of({"package": "some-*"}), packages=[PYPI])
    assert (plan.allowed_by, same.allowed_by) == (None, 0)
    assert plan.digest == same.digest, "who allows it is no part of it"
    others = [
        planned(packages=[{**PYPI, "version": "1.0.1"}]),
        planned(packages=[{**PYPI, "environmentVariables": [{"name": "MODE", "value": "x"}]}]),
        planned(packages=[PYPI], network=True),
        planned(packages=[PYPI], server_id="other"),
        planned(InstallRules(confine=False), packages=[PYPI]),
    ]
    assert len({plan.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_the_kind_of_package_is_the_one_asked_for_or_the_first_that_can_be_installed() -> None:
    packages = [{**PYPI, "registryType": kind} for kind in ("nuget", "oci", "npm", "pypi")]
    remotes = [{"type": "streamable-http", "url": "https://example.com/mcp"}]
    assert planned(packages=packages, remotes=remotes).kind == "pypi"
    for kind in ("npm", "oci", "remote"):
        assert planned(packages=packages, remotes=remotes, registry=kind).kind == kind
    over_http = {**PYPI, "transport": {"type": "streamable-http"}}
    assert planned(packages=[over_http, {**PYPI, "registryType": "npm"}]).kind == "npm", "only servers over stdio"


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        ({"registry": "pypi"}, True),
        ({"registry": "npm"}, False),
        ({"package": "some-*"}, True),
        ({"package": "some-*", "version": "1.0.0"}, True),
        ({"package": "some-*", "version": "1.0.1"}, False),
        ({"package": "some"}, False),
        ({"name": "org.nobody/*"}, True),
        ({"name": "org.trusted/*"}, False),
        ({"publisher": "org.nobody"}, True),
        ({"publisher": "org.*", "registry": "npm"}, False),
    ],
)
def test_all_that_a_rule_gives_must_fit(rule: dict[str, Any], allowed: bool) -> None:
    assert planned(rules_of(rule), packages=[PYPI]).allowed_by == (0 if allowed else None)


def test_a_rule_about_publishers_counts_where_the_catalog_checks_them() -> None:
    rules = rules_of({"publisher": "org.nobody"})
    assert planned(rules, vouched=False, packages=[PYPI]).allowed_by is None


def test_a_rule_grants_the_network_that_it_names() -> None:
    rules = rules_of({"package": "some-server"}, {"registry": "pypi", "network": True})
    quiet = planned(rules, packages=[PYPI])
    assert (quiet.allowed_by, quiet.network) == (0, False)
    loud = planned(rules, packages=[PYPI], network=True)
    assert (loud.allowed_by, loud.network) == (1, True)
    assert planned(rules_of({"package": "some-server"}), packages=[PYPI], network=True).allowed_by is None


def test_a_rule_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one of"):
        InstallRule(version="1.0.0", network=True)


def test_the_default_is_to_deny() -> None:
    wish = Wish(entry(packages=[PYPI]))
    plan = plan_for(wish, InstallRules(), FOLDER)
    with pytest.raises(NotAllowedByPolicy) as caught:
        check_allowed(wish, plan)
    assert caught.value.suggestion == "whoever may can do so with: toolscore install org.nobody/asks"
    assert caught.value.data is not None
    assert caught.value.data["plan"]["commands"] == plan.commands


@pytest.mark.parametrize("server_id", ["toolscore", "a/b", ".hidden", "-option", "x" * 65, "new\nline"])
def test_ids_that_no_server_gets(server_id: str) -> None:
    with pytest.raises(InvalidArguments):
        planned(packages=[PYPI], server_id=server_id)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LD_PRELOAD", "x", "no variable that a server may be given"),
        ("PYTHONPATH", "x", "no variable that a server may be given"),
        ("NODE_OPTIONS", "x", "no variable that a server may be given"),
        ("https_proxy", "x", "no variable that a server may be given"),
        ("A B", "x", "no variable that a server may be given"),
        ("", "x", "no variable that a server may be given"),
        ("API_KEY", "abc", "give a reference, not the value"),
        ("MODE", "abc", "give a reference, not the value"),
        ("A_KEY", "${env:NOT_SET_ANYWHERE}", "no such environment variable is set"),
    ],
)
def test_variables_that_are_refused(name: str, value: str, expected: str) -> None:
    package = {**PYPI, "environmentVariables": [{"name": "MODE", "isRequired": True, "isSecret": True}]}
    with pytest.raises(InvalidArguments) as caught:
        planned(packages=[package], env={name: value})
    assert expected in caught.value.message


def test_secrets_are_given_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "do not pass on")
    package = {**PYPI, "environmentVariables": [{"name": "API_KEY", "isRequired": True, "isSecret": True}]}
    plan = planned(packages=[package], env={"API_KEY": "${env:SECRET_OF_THE_GATEWAY}"})
    assert plan.needs == []
    assert "do not pass on" not in str(plan)
    check_variable("X-Api-Key", "${file:/run/secret}", ())


def test_what_is_given_counts_before_what_the_catalog_sets() -> None:
    package = {"environmentVariables": [{"name": "MODE", "value": "fast"}, {"name": "SIZE", "default": "1"}]}
    assert environment_of(package, {"MODE": "slow"}, FOLDER) == {"MODE": "slow", "SIZE": "1"}


@pytest.mark.parametrize(
    ("identifier", "version", "image"),
    [
        ("docker.io/x/y", "1.0.0", "docker.io/x/y:1.0.0"),
        ("docker.io/x/y:2", "1.0.0", "docker.io/x/y:2"),
        ("host:5000/x/y", "1.0.0", "host:5000/x/y:1.0.0"),
        ("x/y@sha256:" + "0" * 64, "1.0.0", "x/y@sha256:" + "0" * 64),
        ("x/y", None, "x/y"),
    ],
)
def test_the_name_of_an_image(identifier: str, version: str | None, image: str) -> None:
    assert image_of(identifier, version) == image


@pytest.mark.parametrize(
    ("base", "identifier", "fetched"),
    [
        (None, "x/y", "x/y"),
        ("https://docker.io", "x/y", "x/y"),
        ("https://images.acme.example", "x/y", "images.acme.example/x/y"),
        ("https://images.acme.example", "images.acme.example/x/y", "images.acme.example/x/y"),
    ],
)
def test_an_image_is_fetched_from_the_registry_that_its_catalog_names(
    base: str | None, identifier: str, fetched: str
) -> None:
    image = {"registryType": "oci", "identifier": identifier, "version": "1.0.0", "registryBaseUrl": base}
    assert planned(packages=[image]).identifier == fetched


def test_a_package_that_can_be_fetched_goes_before_one_of_another_registry() -> None:
    elsewhere = {**PYPI, "identifier": "private", "registryBaseUrl": "https://packages.acme.example"}
    image = {"registryType": "oci", "identifier": "docker.io/x/y", "version": "1.0.0"}
    assert planned(packages=[elsewhere, image]).identifier == "docker.io/x/y"
    usual = "https://" + ".".join(HOMES["pypi"][0])
    assert planned(packages=[{**PYPI, "registryBaseUrl": usual}, image]).identifier == "some-server"


@pytest.mark.parametrize("script", ["${file:/etc/hostname}/../index.js", "../../../etc/passwd", "/bin/sh", "a/../../b"])
def test_a_package_names_no_command_that_is_not_its_own(script: str) -> None:
    """Such as a reference to a secret, which would be read with the gateway's rights."""
    with pytest.raises(StepFailed, match="no file of its own"):
        server_script({"bin": {"bin-server": script}}, "bin-server")


def test_the_command_of_a_node_package() -> None:
    assert server_script({"bin": "./dist/index.js"}, "x") == "./dist/index.js"
    assert server_script({"bin": {"other": "b.js", "x": "a.js"}}, "@scope/x") == "a.js"
    assert server_script({"bin": {"other": "b.js"}}, "x") == "b.js"
    with pytest.raises(StepFailed, match="no command to start it with"):
        server_script({}, "x")


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (None, {}),
        ({"type": "object"}, {}),
        ({"required": ["a"], "properties": {"a": {"type": "string"}}}, None),
        ({"required": ["a"], "properties": {"a": {"default": None}}}, {"a": None}),
        ({"required": ["a"], "properties": {"a": {"const": 3}, "b": {"default": 1}}}, {"a": 3}),
        ({"required": ["a"], "properties": {"a": {"enum": ["x", "y"]}}}, {"a": "x"}),
        ({"required": ["a"], "properties": {"a": {"examples": [[1], 2]}}}, {"a": [1]}),
        ({"required": ["a"], "properties": {"a": {"enum": []}}}, None),
        ({"required": ["a"]}, None),
    ],
)
def test_the_arguments_of_a_tool_on_trial(schema: Any, arguments: dict[str, Any] | None) -> None:
    assert inferred_arguments(schema) == arguments


def test_a_server_for_the_old_sdk_is_known_by_how_it_dies() -> None:
    assert needs_old_sdk(["Traceback", "ImportError: cannot import name 'FastMCP' from 'mcp.server'"])
    assert not needs_old_sdk(["ImportError: cannot import name 'x' from 'y'"])
    assert not needs_old_sdk(["mcp: no configuration found"])


def asks(*arguments: dict[str, Any], **package: Any) -> list[dict[str, Any]]:
    return [{**PYPI, "packageArguments": list(arguments), **package}]


FOLDERS = {"type": "positional", "valueHint": "directory", "format": "filepath", "isRequired": True, "isRepeated": True}
ONE_FOLDER = {"type": "named", "name": "--repository", "format": "filepath", "isRequired": True}
FILE = {"type": "named", "name": "--db-path", "format": "filepath", "default": "{home}/database.db"}
SECRET = {"type": "named", "name": "--url", "isRequired": True, "isSecret": True}


def test_folders_that_it_is_given_stand_in_its_arguments_for_them(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    first.chmod(0o777)
    second.chmod(0o777)
    (tmp_path / "link").symlink_to(first)
    plan = planned(packages=asks(FOLDERS), folders=[f"{tmp_path}/link", f"{second}:ro"])
    assert plan.folders == [str(first), f"{second}:ro"], "links are followed before anybody approves them"
    assert plan.run == f"some-server==1.0.0 {first} {second}"
    assert not plan.needs_folder
    plan = planned(packages=asks(ONE_FOLDER), folders=[str(first), str(second)])
    assert plan.run == f"some-server==1.0.0 --repository {first}"
    assert planned(packages=asks(FOLDERS)).needs_folder
    assert planned(packages=asks(FOLDERS, FILE)).run.endswith("--db-path /data/servers/asks/home/database.db")
    rules = rules_of({"registry": "pypi"})
    assert planned(rules, packages=asks(FOLDERS)).allowed_by == 0
    assert planned(rules, packages=asks(FOLDERS), folders=[str(first)]).allowed_by is None, "no rule grants a folder"


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"folders": ["relative"]}, "no absolute path"),
        ({"folders": ["/tmp/a,target=/etc"]}, "which no folder of a server may have"),
        ({"folders": ["/tmp/${HOME}"]}, "which no folder of a server may have"),
        ({"folders": ["/opt", "/var", "/usr/share:ro"]}, "no server may be given"),
        ({"folders": [str(Path(__file__).parents[2])]}, "is the gateway's or the machine's own"),
        ({"arguments": {"db-path": "/opt/app.db"}}, "lies in no folder that it may use"),
        ({"folders": ["/nowhere/at/all"]}, "is no folder on the gateway's machine"),
        ({"folders": ["/"]}, "no server may be given /"),
        ({"folders": ["/etc/ssl:ro"]}, "no server may be given /etc/ssl"),
        ({"folders": ["/proc/self/root/etc"]}, "no server may be given"),
        ({"arguments": {"db-path": "/var/lib/x.db"}}, "lies in no folder that it may use"),
        ({"arguments": {"nobody": "x"}}, "knows no argument nobody it has: api-key, db-path, url"),
        ({"arguments": {"fixed": "x"}}, "knows no argument fixed it has: api-key, db-path, url"),
        ({"arguments": {"api-key": "sk-live-1"}}, "api-key is a secret: give a reference"),
        ({"arguments": {"--url": "redis://:secret@host"}}, "url is a secret: give a reference"),
        ({"env": {"OTHER": "x"}}, "knows no variable OTHER it has: MODE"),
    ],
)
def test_what_a_server_may_not_be_given(wish: dict[str, Any], expected: str) -> None:
    fixed, key = {"type": "named", "name": "--fixed", "value": "y"}, {"type": "named", "name": "--api-key"}
    packages = asks(FILE, SECRET, fixed, key, environmentVariables=[{"name": "MODE"}])
    with pytest.raises((InvalidArguments, NotAllowedByPolicy)) as caught:
        planned(packages=packages, **wish)
    assert expected in f"{caught.value.message} {caught.value.suggestion}"


def test_the_gateways_own_folders_are_given_to_nobody(tmp_path: Path) -> None:
    servers, config = tmp_path / "data" / "servers", tmp_path / "config"
    servers.mkdir(parents=True)
    config.mkdir()
    (tmp_path / "work" / "inner").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "data", servers, config):
        with pytest.raises(NotAllowedByPolicy, match="no server may be given"):
            plan_for(Wish(entry(packages=[PYPI]), folders=[str(folder)]), InstallRules(), servers, ours=[config])
    both = [str(tmp_path / "work"), f"{tmp_path}/work/inner:ro"]
    with pytest.raises(InvalidArguments, match="give the outer one alone"):
        plan_for(Wish(entry(packages=[PYPI]), folders=both), InstallRules(), servers, ours=[config])


@pytest.mark.parametrize("path", ["/usr/bin/chromium", "/etc/ssl/certs/x.pem", "/tmp/x.db", "{home}/x.db", "x.db"])
def test_files_that_a_confined_server_sees_anyway_need_no_folder(path: str) -> None:
    assert not planned(packages=asks(FILE), arguments={"db-path": path}).needs_folder
    image = {"registryType": "oci", "identifier": "docker.io/x/y", "version": "1.0.0", "packageArguments": [FILE]}
    planned(packages=[image], arguments={"db-path": "/app/in/the/image.db"})


def test_images_and_servers_elsewhere_are_given_no_folders(tmp_path: Path) -> None:
    image = {"registryType": "oci", "identifier": "docker.io/x/y", "version": "1.0.0"}
    with pytest.raises(InvalidArguments, match="is an image: folders are for packages of pypi and npm"):
        planned(packages=[image], folders=[str(tmp_path)])


def test_what_a_server_plainly_needs_is_said() -> None:
    plan = planned(packages=asks(SECRET))
    assert plan.needs_arguments == ["url"]
    assert plan.wants_network
    assert not planned(packages=asks(FILE)).wants_network
    assert planned(packages=asks(FILE, environmentVariables=[{"name": "X_KEY", "isSecret": True}])).wants_network


def test_an_image_is_no_offer_where_no_container_runs() -> None:
    image = {"registryType": "oci", "identifier": "docker.io/x/y", "version": "1.0.0"}
    remote = {"type": "streamable-http", "url": "https://example.com/mcp"}
    wish = Wish(entry(packages=[image]), approved=True)
    plan = plan_for(wish, InstallRules(), FOLDER, engine_error="docker does not run")
    assert plan.obstacle == "docker does not run"
    with pytest.raises(InstallFailed, match="cannot run here: docker does not run"):
        check_allowed(wish, plan)
    both = Wish(entry(packages=[{**image, "environmentVariables": [{"name": "TOKEN"}]}], remotes=[remote]))
    assert plan_for(wish_for(both, containers=True), InstallRules(), FOLDER).kind == "oci"
    elsewhere = plan_for(wish_for(both, containers=False), InstallRules(), FOLDER, engine_error="docker does not run")
    assert (elsewhere.kind, elsewhere.note) == ("remote", "the server elsewhere: docker does not run")
    means_it = msgspec.structs.replace(both, env={"TOKEN": "${env:PATH}"})
    assert plan_for(wish_for(means_it, containers=False), InstallRules(), FOLDER).kind == "oci", "it says why not"


@pytest.mark.parametrize(
    ("said", "account"),
    [
        ("Request failed with status code 401", True), ("Bad credentials", True), ("invalid_auth: not authed", True),
        ("BRAVE_API_KEY is required", True), ("You must log in first", True),
        ("Error: Invalid API key format. Expected sk_*", True), ("401 Unauthorized", True),
        ("no such table: users", False), ("the file was not found", False), ("division by zero", False),
        ("SyntaxError: Invalid or unexpected token", False), ("No module named 'google_auth'", False),
        ("ImportError: cannot import name 'AuthenticationError' from 'openai'", False),
        ("ENOENT: no such file or directory, open '/x/tokens.json'", False),
        ("Access forbidden - path outside allowed directories", False), ("see the log in /var/log/x", False),
        ("Missing required argument: token_count", False), ("listening on 0.0.0.0:401", False),
    ],
)  # fmt: skip
def test_a_server_that_needs_an_account_is_known_by_what_it_says(said: str, account: bool) -> None:
    assert asks_for_account(said) is account


REMOTE, IMAGE = {"registry": "remote"}, {"registry": "oci"}


@pytest.mark.parametrize(
    ("rule", "server", "allowed"),
    [
        ({**REMOTE, "package": "https://mcp.example.com/*"}, "https://mcp.example.com/a/b", True),
        ({**REMOTE, "package": "https://*.example.com/*"}, "https://a.b.example.com/mcp", True),
        ({**REMOTE, "package": "*"}, "https://a.example.com/mcp", True),
        ({**REMOTE, "package": "https://*.example.com/*"}, "https://evil.example.net/x.example.com/mcp", False),
        ({**REMOTE, "package": "https://mcp.example.com*"}, "https://mcp.example.com.evil.example.net/mcp", False),
        ({**IMAGE, "package": "docker.io/acme/*", "version": "1.0.0"}, "docker.io/acme/bar", True),
        ({**IMAGE, "package": "docker.io/acme/bar", "version": "1.0.0"}, "docker.io/acme/bar:1.0.0", True),
        ({**IMAGE, "package": "docker.io/acme/*", "version": "1.0.0"}, "docker.io/acme/bar:6.6.6-evil", False),
    ],
)
def test_a_rule_allows_what_it_names(rule: dict[str, Any], server: str, allowed: bool) -> None:
    kind = rule["registry"]
    found = allowing_rule(rules_of(rule), entry(), kind, server, "1.0.0" if kind == "oci" else None, network=False)
    assert (found is not None) is allowed
