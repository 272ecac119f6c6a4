"""`toolscore`: run the gateway, and use one that runs.

Exit codes: 0 done; 1 the call failed or the tool reported an error; 2 wrong usage; 3 no gateway answers; 69 a service
the gateway needs is not to be had (its database); 73 a port is taken; 78 a setting is wrong (with `--strict-settings`).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from toolscore import __version__
from toolscore.cli.discovery import add_discovery_commands
from toolscore.cli.operations import cache, calls, errors, pins
from toolscore.cli.terminal import (
    DEFAULT_URL,
    NO_GATEWAY,
    AsJson,
    Url,
    answer_of,
    connected,
    first_line,
    print_json,
    print_table,
    say,
)

__all__ = ["app", "main"]

NO_DATABASE, PORT_TAKEN, BAD_SETTINGS = 69, 73, 78

app = typer.Typer(
    name="toolscore",
    help="One address for every tool an agent can use.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = typer.Typer(help="Measure, as ratios against a floor in the same run.", no_args_is_help=True)
app.add_typer(bench, name="bench")
keys = typer.Typer(help="Who may come in from elsewhere: API keys, kept as hashes.", no_args_is_help=True)
app.add_typer(keys, name="keys")
policy = typer.Typer(help="What callers may do: the rules under `policy` in toolscore.yaml.", no_args_is_help=True)
app.add_typer(policy, name="policy")
for operations, name in ((calls, "calls"), (pins, "pins"), (errors, "errors"), (cache, "cache")):
    app.add_typer(operations, name=name)

ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="TOOLSCORE_CONFIG_DIR", help="Folder of the settings files; ./config if it exists."
    ),
]


def main() -> None:
    """The console script."""
    app()


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """One address for every tool an agent can use."""
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command()
def serve(
    config: ConfigDir = None,
    strict_settings: Annotated[
        bool, typer.Option("--strict-settings", help="Refuse to start when a setting is wrong.")
    ] = False,
) -> None:
    """Run the gateway until Ctrl-C."""
    from toolscore.telemetry.logs import configure_logging  # isort: skip  (before whatever logs: it keeps structlog small)

    import asyncio

    import uvloop

    from toolscore.app.settings import load_settings
    from toolscore.endpoints import AddressInUse
    from toolscore.endpoints import serve as serve_doors
    from toolscore.stores.database import StoreError

    config = _config_dir(config)
    loaded = load_settings(config)
    configure_logging(loaded.settings.logging.level, loaded.settings.logging.format)
    for problem in loaded.problems:
        say(f"settings: {problem}")
    if loaded.problems and strict_settings:
        raise typer.Exit(BAD_SETTINGS)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_doors(loaded, config, lambda gateway: _started(gateway, config)))
    except AddressInUse as exc:
        say(f"toolscore: {exc}")
        raise typer.Exit(PORT_TAKEN) from None
    except StoreError as exc:
        say(f"toolscore: {exc}. Check `storage` in toolscore.yaml")
        raise typer.Exit(NO_DATABASE) from None


def _started(gateway: Any, config: Path | None) -> None:
    import gc

    _banner(gateway, config)
    # What stands now stays: keep the collector from walking it again and again under load.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _banner(gateway: Any, config: Path | None) -> None:
    services = gateway.settings.current.core_services
    http, router = services.toolscore_http, services.toolscore_mcp
    base = f"http://{_shown_host(http.host)}:{http.port}"
    code = '{"tool_id": "python-executor-mcp-server__python_execute", "parameters": {"code": "sum(range(101))"}}'
    unix = f"\n               {router.unix_socket}  (Unix socket)" if router.unix_socket else ""
    servers = ", ".join(
        upstream.server_id if upstream.state == "up" else f"{upstream.server_id} ({upstream.state})"
        for upstream in gateway.upstreams
    )
    problems = len(gateway.settings_problems)
    settings = str(config or "embedded defaults: there is no ./config here")
    if problems:
        settings += f", with {problems} mistake{'s' if problems > 1 else ''} (see above)"
    print(
        f"""ToolScore {__version__} is ready.

  REST         {base}/api/v1/tools   (more: {base}/docs)
  MCP          {base}/mcp   (one server alone: {base}/servers/ID/mcp)
  MCP router   ws://{_shown_host(router.host)}:{router.port}{router.endpoint}{unix}
  Events       ws://{_shown_host(http.host)}:{http.port}/api/v1/events/tools   ({base}/api/v1/events/stream)
  Health       {base}/health
  Settings     {settings}
  Servers      {servers}

Try a call:

  curl -s {base}/execute_tool -H 'content-type: application/json' \\
    -d '{code}'

Ctrl-C ends it and everything it started.
""",
        flush=True,
    )


def _shown_host(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _config_dir(given: Path | None) -> Path | None:
    if given is not None:
        if not given.is_dir():
            say(f"toolscore: there is no folder {given}: give the one with ports_config.yaml with --config")
            raise typer.Exit(2)
        return given
    local = Path("config")
    return local if any((local / name).is_file() for name in ("ports_config.yaml", "mcp_servers.json")) else None


@app.command()
def tools(
    text: Annotated[str | None, typer.Argument(help="Only those with this text in name or description.")] = None,
    server: Annotated[str | None, typer.Option(help="Only this server's.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the tools."""
    found: list[dict[str, Any]] = []
    params: dict[str, Any] = {"limit": 1000}
    params |= {key: value for key, value in (("q", text), ("server_id", server)) if value}
    with connected(url) as client:
        while True:
            data = answer_of(client.get("/api/v1/tools", params=params))
            found += data["tools"]
            if not data["next_cursor"]:
                break
            params["cursor"] = data["next_cursor"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            tool["tool_id"],
            _arguments(tool["input_schema"]),
            first_line(tool["description"], 80),
            f"{tool['tokens_estimate']:,}",
            _state(tool),
        )
        for tool in found
    ]
    print_table(("tool", "arguments", "what it does", "tokens", "state"), rows, empty="no tools match")


@app.command()
def search(
    query: Annotated[list[str], typer.Argument(help="The task, in words.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 5,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Find the tools for a task: `toolscore search what time is it in Tokyo`."""
    with connected(url, timeout=120) as client:
        found = answer_of(client.post("/api/v1/tools/search", json={"query": " ".join(query), "limit": limit}))["tools"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            tool["tool_id"],
            _arguments(tool["input_schema"]),
            first_line(tool["description"], 70),
            f"{tool['relevance']:.2f}",
            f"{tool['score']:.2f}",
            _state(tool),
        )
        for tool in found
    ]
    columns = ("tool", "arguments", "what it does", "relevance", "score", "state")
    print_table(columns, rows, empty="no tool here has anything to do with it")


add_discovery_commands(app)


@app.command()
def servers(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the servers behind the gateway."""
    with connected(url) as client:
        found = answer_of(client.get("/api/v1/servers"))["servers"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            server["server_id"],
            server["kind"] or "?",
            server["state"],
            str(server["tools"]),
            str(server["calls_in_flight"]),
            str(server["restarts"]),
            server["last_error"] or "",
        )
        for server in found
    ]
    print_table(("server", "kind", "state", "tools", "in flight", "restarts", "last error"), rows, empty="no servers")


@app.command()
def call(
    tool: Annotated[str, typer.Argument(help="Full name, as `toolscore tools` shows it.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="VALUE is JSON where it parses, else text.")
    ] = None,
    body: Annotated[
        str | None, typer.Option("--json", metavar="OBJECT", help="The arguments as a JSON object.")
    ] = None,
    action: Annotated[str | None, typer.Option(help="The tool's own name, where TOOL is a server.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Give up after this long.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Print the whole answer as JSON.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run a tool: `toolscore call time__get_current_time timezone=Asia/Tokyo`."""
    parameters: dict[str, Any] = {}
    if body is not None:
        try:
            parameters = json.loads(body)
        except ValueError as exc:
            say(f"--json takes a JSON object: {exc}")
            raise typer.Exit(2) from None
    pairs = [_pair(argument) for argument in arguments or []]
    request: dict[str, Any] = {"tool_id": tool, "parameters": parameters}
    request |= {key: value for key, value in (("action", action), ("timeout_seconds", timeout)) if value is not None}
    with connected(url, timeout=None) as client:
        types = _types(client, tool, action) if pairs else {}
        for key, value in pairs:
            parameters[key] = value if types.get(key) == "string" else _json_or_text(value)
        response = client.post("/execute_tool", json=request)
    if raw:
        print_json(response.json())
        raise typer.Exit(0 if response.is_success and not response.json()["data"]["is_error"] else 1)
    data = answer_of(response)
    for block in data["content"]:
        print(
            block["text"] if block.get("type") == "text" else f"[{block.get('type')}: {first_line(json.dumps(block))}]"
        )
    if data["is_error"]:
        raise typer.Exit(1)


@app.command()
def events(
    types: Annotated[list[str] | None, typer.Argument(help="Only these types.")] = None,
    since: Annotated[int | None, typer.Option(metavar="SEQ", help="Begin behind this event.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Follow what changes, until Ctrl-C."""
    params: dict[str, Any] = {}
    if types:
        params["events"] = ",".join(types)
    if since is not None:
        params["since"] = since
    try:
        with (
            connected(url, timeout=None) as client,
            client.stream("GET", "/api/v1/events/stream", params=params) as response,
        ):
            if not response.is_success:
                response.read()
                answer_of(response)
            say(f"following {url}, Ctrl-C ends it")
            for line in response.iter_lines():
                if line.startswith("data: "):
                    print(line[6:] if as_json else _event_line(json.loads(line[6:])), flush=True)
    except KeyboardInterrupt:
        return
    say("the gateway closed the stream")
    raise typer.Exit(NO_GATEWAY)


@app.command()
def doctor(config: ConfigDir = None, as_json: AsJson = False) -> None:
    """Say what is installed, which ports are free, which servers start, and how to mend what does not."""
    import asyncio

    from toolscore.app.doctor import examine
    from toolscore.telemetry.logs import configure_logging

    configure_logging("error", "console")
    findings = asyncio.run(examine(_config_dir(config), progress=None if as_json else say))
    if as_json:
        print_json([{"check": f.check, "ok": f.ok, "found": f.found, "mend": f.mend} for f in findings])
    else:
        rows = [("ok" if f.ok else "WRONG", f.check, f.found, "" if f.ok else f.mend or "") for f in findings]
        print_table(("", "check", "found", "to mend it"), rows, empty="nothing to check")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is: a name for the log and the rules.")],
    scope: Annotated[list[str] | None, typer.Option(help="What its owner may do; `admin` changes the gateway.")] = None,
    days: Annotated[float | None, typer.Option(min=0.01, help="Good for so many days; for ever if not given.")] = None,
    config: ConfigDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once. A gateway that runs knows it within seconds."""
    from datetime import timedelta

    from toolscore.core.models import now, timestamp

    expires_at = timestamp(now() + timedelta(days=days)) if days is not None else None
    key_id, key = _with_keys(config, lambda ring: ring.create(name, scope or [], expires_at))
    if as_json:
        print_json({"key_id": key_id, "key": key, "name": name, "scopes": scope or [], "expires_at": expires_at})
    else:
        print(key)
        until = f"until {expires_at}" if expires_at else "without end"
        say(f"key {key_id} of {name}, {until}. It is not shown again.")
        say("Send it as `Authorization: Bearer …`; this command line takes it from TOOLSCORE_API_KEY.")


@keys.command("list")
def list_keys(config: ConfigDir = None, as_json: AsJson = False) -> None:
    """List the keys, revoked ones too."""
    found = _with_keys(config, lambda ring: ring.list())
    if as_json:
        print_json(found)
        return
    rows = [
        (
            row["key_id"],
            row["name"],
            row["scopes"],
            row["created_at"][:10],
            f"revoked {row['revoked_at'][:10]}" if row["revoked_at"] else (row["expires_at"] or "good")[:10],
        )
        for row in found
    ]
    print_table(("key", "name", "scopes", "made", "state"), rows, empty="no keys: toolscore keys create NAME")


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="As `list` shows it.")], config: ConfigDir = None) -> None:
    """Make a key worthless. A gateway that runs knows it within seconds."""
    _with_keys(config, lambda ring: ring.revoke(key_id))
    say(f"key {key_id} is revoked")


@policy.command("explain")
def explain(
    principal: Annotated[str, typer.Argument(help="Who would call.")],
    tool: Annotated[str, typer.Argument(help="The tool's full name.")],
    arguments: Annotated[str | None, typer.Option("--json", metavar="OBJECT", help="The arguments.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="A scope that the principal has.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Say whether a call would be allowed, and which rule decides. Nothing is called."""
    params: dict[str, Any] = {"principal": principal, "tool_id": tool, "scope": scope or []}
    if arguments is not None:
        params["arguments"] = arguments
    with connected(url) as client:
        found = answer_of(client.get("/api/v1/policy/explain", params=params))
    decided = f"rule {found['rule']}: {json.dumps(found['rule_text'])}" if found["rule"] else "no rule is about it"
    print(f"{'allowed' if found['allowed'] else 'refused'}: {decided} (default: {found['default']})")
    if not found["allowed"]:
        raise typer.Exit(1)


def _with_keys(config: Path | None, work: Callable[[Any], Any]) -> Any:
    """Do something with the keys in the database of the settings."""
    import asyncio

    from toolscore.access.auth import KeyRing
    from toolscore.app.settings import database_url, load_settings
    from toolscore.core.errors import ToolScoreError
    from toolscore.stores import open_database
    from toolscore.stores.database import StoreError

    async def run() -> Any:
        async with open_database(database_url(load_settings(_config_dir(config)).settings)) as database:
            return await work(KeyRing(database))

    try:
        return asyncio.run(run())
    except StoreError as exc:
        say(f"toolscore: {exc}. Check `storage` in toolscore.yaml")
        raise typer.Exit(NO_DATABASE) from None
    except ToolScoreError as exc:
        say(f"toolscore: {exc.message}")
        raise typer.Exit(1) from None


@bench.command("gateway")
def bench_gateway(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each of some 30 measurements takes.")] = 2.0,
    pipeline: Annotated[bool, typer.Option("--pipeline", help="Instead, what each step of it costs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the gateway on this machine, against a bare FastAPI echo in the same run."""
    from toolscore.bench.gateway import run_gateway_bench
    from toolscore.bench.pipeline import run_pipeline_bench

    result = (run_pipeline_bench if pipeline else run_gateway_bench)(seconds=seconds, quiet=as_json)
    if as_json:
        print_json(result)


Half = Annotated[str, typer.Option(help="`even` or `odd`: tune on one half, check on the other.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many questions a set.")]
Mode = Annotated[str, typer.Option(help="What makes vectors: `light` or `semantic`.")]
Picture = Annotated[Path | None, typer.Option(help="Draw it, too: a PNG or SVG file.")]


@bench.command("search")
def bench_search(
    folder: Annotated[Path, typer.Argument(help="Sets: folders with tools.jsonl and queries.jsonl.")],
    half: Half = "all",
    limit: Limit = None,
    mode: Mode = "light",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well the right tool is found, on labelled sets."""
    from toolscore.bench.search import run_search_bench

    result = _measured(
        folder, half, mode, picture, lambda embedder: run_search_bench(
            folder, half=half, limit=limit, picture=picture, quiet=as_json, embedder=embedder
        ),
    )  # fmt: skip
    if as_json:
        print_json(result)


@bench.command("gaps")
def bench_gaps(
    folder: Annotated[Path, typer.Argument(help="Sets: folders with tools.jsonl and gap.jsonl.")],
    half: Half = "all",
    limit: Limit = None,
    mode: Mode = "light",
    picture: Picture = None,
    fit: Annotated[Path | None, typer.Option(help="Fit the model on these sets first, into this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a missing tool is noticed, on labelled sets."""
    from toolscore.bench.gaps import run_gap_bench

    result = _measured(
        folder, half, mode, picture, lambda embedder: run_gap_bench(
            folder, half=half, limit=limit, fit_into=fit, picture=picture, quiet=as_json, embedder=embedder
        ),
    )  # fmt: skip
    if as_json:
        print_json(result)


def _measured(folder: Path, half: str, mode: str, picture: Path | None, run: Callable[[Any], Any]) -> Any:
    from toolscore.embedding import EmbeddingError, LightEmbedder, SemanticEmbedder

    if half not in ("all", "even", "odd"):
        say(f"--half takes `even`, `odd` or `all`, found {half!r}")
        raise typer.Exit(2)
    if mode not in ("light", "semantic"):
        say(f"--mode takes `light` or `semantic`, found {mode!r}")
        raise typer.Exit(2)
    if picture is not None and (picture.suffix not in (".png", ".svg", ".pdf") or not picture.parent.is_dir()):
        say(f"--picture takes a .png, .svg or .pdf file in a folder that exists, found {picture}")
        raise typer.Exit(2)
    try:
        return run(SemanticEmbedder() if mode == "semantic" else LightEmbedder())
    except (FileNotFoundError, ValueError, KeyError) as exc:
        say(f"{folder} cannot be measured: {exc}")
        raise typer.Exit(2) from None
    except EmbeddingError as exc:
        say(str(exc))
        raise typer.Exit(2) from None


@bench.command("executor")
def bench_executor(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each throughput is measured.")] = 2.0,
    engines: Annotated[str, typer.Option(help="Which, separated by commas; all that run here if not given.")] = "",
    samples: Annotated[int, typer.Option(min=0, help="Paced calls of each workload.")] = 150,
    output: Annotated[Path, typer.Option(help="Folder for benchmark_results.json and the picture.")] = Path(),
    soak: Annotated[int, typer.Option(min=0, help="Instead, make so many calls and watch what grows.")] = 0,
    interpreter: Annotated[str | None, typer.Option(help="The sandbox's Python, if not this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the Python executor's engines beside one another, and through the gateway."""
    from toolscore.bench.executor import run_executor_bench

    code = run_executor_bench(
        seconds=seconds, engines=engines, samples=samples, output=output, soak=soak, interpreter=interpreter,
        quiet=as_json,
    )  # fmt: skip
    raise typer.Exit(code)


@bench.command("isolation")
def bench_isolation(
    engines: Annotated[str, typer.Option(help="Which, separated by commas; all that run here if not given.")] = "",
    as_json: AsJson = False,
) -> None:
    """Try what passes from one call of the Python executor to the next, and print the matrix."""
    from toolscore.app.gateway import executor_command

    command = executor_command("isolation", "--engines", engines, *(["--json"] if as_json else []))
    raise typer.Exit(subprocess.run(command, check=False).returncode)


# Talking to a gateway that runs


def _pair(argument: str) -> tuple[str, str]:
    key, separator, value = argument.partition("=")
    if not separator or not key:
        say(f"{argument!r} is no KEY=VALUE")
        raise typer.Exit(2)
    if not argument.isprintable() and any("\ud800" <= character <= "\udfff" for character in argument):
        say(f"the argument {key!r} is not text in UTF-8")
        raise typer.Exit(2)
    return key, value


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _types(client: Any, tool: str, action: str | None) -> dict[str, Any]:
    """The types that a tool's schema gives its arguments, so that `code=42` is text where text is wanted."""
    listed = client.get("/api/v1/tools", params={"server_id": tool, "limit": 1000}).json()["data"]["tools"]
    found = [entry for entry in listed if action in (None, entry["name"])]
    if not found:
        answer = client.get(f"/api/v1/tools/{tool}").json()
        found = [answer["data"]] if answer["success"] else []
    schema = found[0]["input_schema"] if len(found) == 1 else {}
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return {key: given.get("type") for key, given in (properties or {}).items() if isinstance(given, dict)}


def _arguments(schema: Any) -> str:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    required = schema.get("required") or [] if isinstance(schema, dict) else []
    return ", ".join(name if name in required else f"{name}?" for name in properties or {})


def _state(tool: dict[str, Any]) -> str:
    return "" if tool["available"] else str(tool["server_state"])


def _event_line(event: dict[str, Any]) -> str:
    told = {
        key: value
        for key, value in event.items()
        if key not in ("type", "seq", "timestamp", "capabilities", "description", "tool_type", "name")
    }
    facts = "  ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in told.items())
    return f"{event['timestamp']}  {event.get('seq', '-')!s:>6}  {event['type']:<18} {first_line(facts, 160)}"
