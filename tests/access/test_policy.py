"""Rules of the operator: as a pure function, and at every door of a gateway that runs."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import GatewayProcess, odd, running_gateway, toolscore, wait_for, with_config
from websockets.asyncio.client import connect

from runtimes.client import RealTimeToolClient
from toolscore.access.policy import Policy, Rule
from toolscore.core.models import Principal, Tool

NAMES = ["ada", "bob", "guest-1", "guest-2"]
SERVERS = ["time", "files"]
OWN = ["read", "write", "delete_all"]
PATTERNS = ["*", "a*", "guest*", "time", "files", "*__delete_*", "read", "time__*", "[ab]*"]


def tool(server_id: str, name: str, **annotations: Any) -> Tool:
    return Tool(
        tool_id=f"{server_id}__{name}",
        server_id=server_id,
        name=name,
        definition={"name": name, "annotations": annotations},
        definition_hash=str(sorted(annotations.items())),
        first_seen="2026-11-21T00:00:00Z",
    )


patterns = st.lists(st.sampled_from(PATTERNS), max_size=2).map(tuple)
rules = st.builds(
    Rule,
    effect=st.sampled_from(["allow", "deny"]),
    principals=patterns,
    scopes=st.lists(st.sampled_from(["read", "admin"]), max_size=1).map(tuple),
    servers=patterns,
    tools=patterns,
    annotations=st.dictionaries(st.sampled_from(["readOnlyHint", "destructiveHint"]), st.booleans(), max_size=1),
    arguments=st.dictionaries(
        st.sampled_from(["path", "options.force"]),
        st.dictionaries(st.sampled_from(["equals", "not_equals"]), st.sampled_from(["/etc", True, 1]), min_size=1),
        max_size=1,
    ),
)
policies = st.builds(Policy, st.lists(rules, max_size=5), st.sampled_from(["allow", "deny"]))
principals = st.builds(Principal, st.sampled_from(NAMES), st.sampled_from([(), ("read",), ("read", "admin")]))
tools = st.builds(
    tool,
    st.sampled_from(SERVERS),
    st.sampled_from(OWN),
    readOnlyHint=st.booleans(),
)
arguments = st.fixed_dictionaries(
    {}, optional={"path": st.sampled_from(["/etc", "/home", 1, True]), "options": st.just({"force": True}) | st.just(1)}
)


@settings(deadline=None)
@given(policy=policies, principal=principals, called=tools, given_arguments=arguments)
@pytest.mark.long
def test_a_call_is_allowed_only_of_a_tool_that_is_seen(
    policy: Policy, principal: Principal, called: Tool, given_arguments: dict[str, Any]
) -> None:
    if policy.decide(principal, called, given_arguments).allowed:
        assert policy.sees(principal, called).allowed


@settings(deadline=None)
@given(policy=policies, principal=principals, called=tools, given_arguments=arguments, more=rules)
@pytest.mark.long
def test_a_rule_more_that_denies_never_allows_more(
    policy: Policy, principal: Principal, called: Tool, given_arguments: dict[str, Any], more: Rule
) -> None:
    denying = more.model_copy(update={"effect": "deny"})
    stricter = Policy([*policy.rules, denying], policy.default)
    if stricter.decide(principal, called, given_arguments).allowed:
        assert policy.decide(principal, called, given_arguments).allowed
    if stricter.sees(principal, called).allowed:
        assert policy.sees(principal, called).allowed


@settings(deadline=None)
@given(policy=policies, principal=principals, called=tools, given_arguments=arguments, seed=st.randoms())
@pytest.mark.long
def test_the_order_of_rules_does_not_matter(
    policy: Policy, principal: Principal, called: Tool, given_arguments: dict[str, Any], seed: Any
) -> None:
    shuffled = list(policy.rules)
    seed.shuffle(shuffled)
    again = Policy(shuffled, policy.default)
    decided = policy.decide(principal, called, given_arguments).allowed
    assert again.decide(principal, called, given_arguments).allowed == decided


@settings(deadline=None)
@given(pattern=st.sampled_from(PATTERNS), name=st.sampled_from(NAMES))
def test_patterns_are_globs(pattern: str, name: str) -> None:
    denied = (
        not Policy([Rule(effect="deny", principals=(pattern,))]).sees(Principal(name), tool("time", "read")).allowed
    )
    assert denied == fnmatch.fnmatchcase(name, pattern)


@pytest.mark.parametrize(
    ("operator", "operand", "value", "matches"),
    [
        ("equals", "/etc", "/etc", True),
        ("equals", True, 1, False),
        ("equals", 1, True, False),
        ("not_equals", "x", None, True),
        ("in", ["a", "b"], "b", True),
        ("not_in", ["a"], "b", True),
        ("matches", "^/etc", "/etc/passwd", True),
        ("matches", "^/etc", 5, False),
        ("not_matches", "^/etc", "/home", True),
        ("at_most", 10, 11, False),
        ("at_most", 10, True, False),
        ("at_least", 10, 10.5, True),
        ("present", True, "x", True),
        ("present", False, "x", False),
    ],
)
def test_arguments_are_compared_as_json_is(operator: str, operand: Any, value: Any, matches: bool) -> None:
    rule = Rule(effect="deny", arguments={"a.b": {operator: operand}})
    decision = Policy([rule]).decide(Principal("ada"), tool("time", "read"), {"a": {"b": value}})
    assert decision.allowed is not matches


@pytest.mark.parametrize(("effect", "operator"), [("deny", "matches"), ("allow", "matches"), ("allow", "not_matches")])
def test_an_expression_that_takes_too_long_counts_against_the_call(effect: Any, operator: Any) -> None:
    rule = Rule(effect=effect, arguments={"path": {operator: "(a|a)+$"}})
    policy = Policy([rule], "deny" if effect == "allow" else "allow")
    decide = partial(policy.decide, Principal("ada"), tool("time", "read"))
    assert not decide({"path": "a" * 60 + "b"}).allowed
    assert decide({"path": "b"}).allowed is (operator == "not_matches" or effect == "deny")


def test_what_a_tool_does_not_say_of_itself_is_taken_for_the_worst() -> None:
    silent, safe = tool("files", "write"), tool("files", "read", readOnlyHint=True, destructiveHint=False)
    policy = Policy([Rule(effect="deny", annotations={"destructiveHint": True})])
    assert not policy.sees(Principal("ada"), silent).allowed
    assert policy.sees(Principal("ada"), safe).allowed


# At the doors

SETTINGS = """
access: {local_without_key: false}
policy:
  rules:
    - {effect: deny, principals: ["guest*"], servers: [secret], reason: "not for guests"}
    - {effect: deny, principals: ["visitor"], tools: ["secret__*"], reason: "nor for visitors, who are told by tools"}
    - {effect: deny, principals: ["guest*"], arguments: {text: {matches: "^rm "}}, reason: "guests remove nothing"}
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with running_gateway({"open": odd("good"), "secret": odd("good")}, settings=SETTINGS) as process:
        keys = {name: make_key(process, name) for name in ("guest", "visitor", "ada")}
        keys["root"] = make_key(process, "root", "--scope", "admin")
        process.keys = keys  # type: ignore[attr-defined]
        process.http.headers["authorization"] = f"Bearer {keys['root']}"
        for server_id in ("open", "secret"):
            process.wait_for_state(server_id, "up")
        yield process


def make_key(gateway: GatewayProcess, *arguments: str) -> str:
    return with_config(gateway, "keys", "create", *arguments)


def as_(gateway: GatewayProcess, name: str) -> httpx.Client:
    key = gateway.keys[name]  # type: ignore[attr-defined]
    return httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=120)


def test_a_tool_that_is_denied_does_not_exist(gateway: GatewayProcess) -> None:
    with as_(gateway, "guest") as guest, as_(gateway, "ada") as ada:
        for path in ("/list_tools", "/api/v1/tools"):
            mine, hers = (client.get(path, params={"limit": 200}).json()["data"] for client in (guest, ada))
            assert not any(tool["server_id"] == "secret" for tool in mine["tools"])
            assert any(tool["server_id"] == "secret" for tool in hers["tools"])
            assert hers["total_count"] > mine["total_count"]
        unknown = guest.get("/api/v1/tools/nothing__echo").json()["error"]
        denied = guest.get("/api/v1/tools/secret__echo").json()["error"]
        assert (denied["code"], denied["message"].replace("secret", "nothing")) == (unknown["code"], unknown["message"])
        assert "secret" not in str(guest.get("/api/v1/tools/secre__echo").json()["error"]["suggestion"])
        call = {"tool_id": "secret__echo", "parameters": {"text": "x"}}
        assert guest.post("/execute_tool", json=call).json()["error"]["code"] == "tool_not_found"
        assert guest.post("/execute_tool", json={**call, "tool_id": "secret", "action": "echo"}).status_code == 404
        assert ada.post("/execute_tool", json=call).json()["success"]


def test_nor_over_mcp(gateway: GatewayProcess) -> None:
    with as_(gateway, "guest") as guest, as_(gateway, "ada") as ada:
        for path, name in (("/mcp", "secret__echo"), ("/servers/secret/mcp", "echo")):
            call = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": {"name": name, "arguments": {"text": "x"}},
            }
            code = guest.post(path, json=call).json()["error"]["code"]
            assert code == (-32602 if path == "/mcp" else "server_not_found")
            assert "result" in ada.post(path, json=call).json()
        listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        assert ada.post("/servers/secret/mcp", json=listing).json()["result"]["tools"]


def said_of(client: httpx.Client, server_id: str) -> list[Any]:
    """What every door says of a server, with its name taken out."""
    client_info = {"capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize",
             "params": {"protocolVersion": "2025-06-18", **client_info}}  # fmt: skip
    answers = [
        client.post(f"/servers/{server_id}/mcp", json=hello,
                    headers={"accept": "application/json, text/event-stream"}),
        client.get(f"/servers/{server_id}/mcp"),
        client.get(f"/api/v1/servers/{server_id}"),
    ]  # fmt: skip
    return [(answer.status_code, str(answer.json().get("error")).replace(server_id, "ID")) for answer in answers]


@pytest.mark.parametrize("who", ["guest", "visitor"])
@pytest.mark.long
def test_a_server_that_is_wholly_denied_does_not_exist(gateway: GatewayProcess, who: str) -> None:
    with as_(gateway, who) as guest, as_(gateway, "ada") as ada:
        assert said_of(guest, "secret") == said_of(guest, "terces")
        assert said_of(ada, "secret") != said_of(ada, "terces")
        for path in ("/api/v1/servers", "/health"):
            assert "secret" not in guest.get(path).text, path
            assert "secret" in ada.get(path).text, path
        assert guest.get("/metrics").status_code == 403
        events = gateway.events()
        assert any(event.get("server_id") == "secret" for event in events)
        heard = ""
        with contextlib.suppress(httpx.ReadTimeout):
            with guest.stream("GET", "/api/v1/events/stream?since=0", timeout=httpx.Timeout(10, read=1)) as stream:
                for line in stream.iter_lines():
                    heard += line
        assert "secret" not in heard


def test_nor_on_the_sockets(gateway: GatewayProcess) -> None:
    async def run() -> None:
        for name, sees in (("guest", False), ("ada", True)):
            key = gateway.keys[name]  # type: ignore[attr-defined]
            async with RealTimeToolClient(gateway.events_url, api_key=key) as client:
                async with asyncio.timeout(10):
                    await client.connected()
                assert ("secret__echo" in client.tools) is sees
                listed = await client.call("list_tools", {"limit": 200})
                assert ("secret__echo" in json.dumps(listed)) is sees
            headers = {"authorization": f"Bearer {key}"}
            async with connect(gateway.router_url, additional_headers=headers) as socket:
                await socket.send(json.dumps({"type": "list_tools", "request_id": 1}))
                assert ('"secret"' in str(await socket.recv())) is sees

    asyncio.run(run())


def test_arguments_decide_too(gateway: GatewayProcess) -> None:
    with as_(gateway, "guest") as guest, as_(gateway, "ada") as ada:
        for client, text, allowed in ((guest, "hello", True), (guest, "rm -rf /", False), (ada, "rm -rf /", True)):
            answer = client.post("/execute_tool", json={"tool_id": "open__echo", "parameters": {"text": text}}).json()
            assert answer["success"] is allowed
        refused = guest.post("/execute_tool", json={"tool_id": "open__echo", "parameters": {"text": "rm x"}}).json()
        assert refused["error"]["code"] == "forbidden"
        assert "guests remove nothing" in refused["error"]["message"]


@pytest.mark.long
def test_the_rule_that_decides_can_be_asked_for(gateway: GatewayProcess) -> None:
    def explain(*arguments: str) -> tuple[int, str]:
        root = gateway.keys["root"]  # type: ignore[attr-defined]
        done = toolscore("policy", "explain", *arguments, "--url", gateway.url, variables={"TOOLSCORE_API_KEY": root})
        return done.returncode, done.stdout + done.stderr

    assert explain("guest-7", "secret__echo")[0] == 1
    assert "rule 1" in explain("guest-7", "secret__echo")[1]
    assert "rule 3" in explain("guest-7", "open__echo", "--json", '{"text": "rm x"}')[1]
    assert explain("ada", "secret__echo") == (0, "allowed: no rule is about it (default: allow)\n")
    with as_(gateway, "ada") as ada:
        asked = ada.get("/api/v1/policy/explain", params={"principal": "guest", "tool_id": "secret__echo"})
        assert asked.status_code == 403


@pytest.mark.long
def test_rules_are_applied_while_it_runs(gateway: GatewayProcess) -> None:
    path = gateway.config / "toolscore.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("servers: [secret]", "servers: [nothing]"))
        with as_(gateway, "guest") as guest:
            call = {"tool_id": "secret__echo", "parameters": {"text": "x"}}
            wait_for(lambda: guest.post("/execute_tool", json=call).json()["success"], 60)
            path.write_text(before)
            wait_for(lambda: not guest.post("/execute_tool", json=call).json()["success"], 60)
        path.write_text(before.replace('"^rm "', '"("'))
        wait_for(lambda: gateway.event_seen("settings_rejected"), 60)
    finally:
        path.write_text(before)


def test_a_rule_may_deny_the_executor_by_its_short_name() -> None:
    executor, other = tool("python-executor-mcp-server", "python_execute"), tool("time", "python_execute")
    for about in ({"tools": ("python__*",)}, {"servers": ("python",)}):
        policy = Policy([Rule(effect="deny", **about)])  # type: ignore[arg-type]
        assert not policy.sees(Principal("ada"), executor).allowed
        assert policy.sees(Principal("ada"), other).allowed
        only = Policy([Rule(effect="allow", **about)], default="deny")  # type: ignore[arg-type]
        assert not only.sees(Principal("ada"), executor).allowed, "a server of that id may be meant"


@pytest.mark.long
def test_an_expression_that_would_take_for_ever_refuses_the_call_and_holds_nobody_up() -> None:
    settings = "policy: {rules: [{effect: deny, tools: ['echo__*'], arguments: {text: {matches: '(a+)+$'}}}]}"
    with running_gateway({"echo": odd("echo")}, settings=settings) as process:
        process.wait_for_state("echo", "up")
        for _ in range(3):
            assert process.execute("echo__echo", {"text": "a" * 60 + "b"})["error"]["code"] == "forbidden"
            assert process.text("echo__echo", {"text": "b"}) == "b"
        assert process.busiest_seconds() < 5, "that would take years"
