"""Settings: from the files in `config/`, overridden by `TOOLSCORE_…` variables; strict, and watched.

Three files make one `Settings`: `ports_config.yaml`, `toolscore.yaml` and `mcp_servers.json`. A problem names the file,
the line, and what was expected. Nothing below this floor reads settings: rooms take plain arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import structlog
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from toolscore.core.models import UpstreamSpec
from toolscore.discovery import DiscoveryRules

__all__ = [
    "ENV_PREFIX",
    "FILES",
    "NEEDS_RESTART",
    "Loaded",
    "Settings",
    "SettingsHub",
    "database_url",
    "differences",
    "load_settings",
    "watch_files",
]

log = structlog.get_logger(__name__)

FILES = ("ports_config.yaml", "toolscore.yaml", "mcp_servers.json")
ENV_PREFIX = "TOOLSCORE_"
NOT_SETTINGS = frozenset({"TOOLSCORE_CONFIG_DIR", "TOOLSCORE_URL"})
"""Variables of the command line and the clients, which share the prefix."""

NEEDS_RESTART = ("core_services", "storage", "access", "events", "logging", "tracing", "embeddings")
"""What cannot change while the gateway runs: open sockets, the open database, who may come in."""

DEBOUNCE_SECONDS = 1.0

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpService(_Section):
    host: str = "127.0.0.1"
    port: Port = 8082


class RouterService(_Section):
    host: str = "127.0.0.1"
    port: Port = 8081
    endpoint: str = Field("/websocket", pattern=r"^/")
    unix_socket: str | None = None


class CoreServices(_Section):
    toolscore_http: HttpService = HttpService()
    toolscore_mcp: RouterService = RouterService()


class PythonExecutorService(_Section):
    host: str = "127.0.0.1"
    port: Port | None = 8083
    auto_start: bool = True


class OwnServers(_Section):
    python_executor: PythonExecutorService = PythonExecutorService()


class Tokens(_Section):
    issuer: str
    audience: str
    jwks_url: str = Field(pattern=r"^https?://")
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    scopes: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()


class Access(_Section):
    allowed_hosts: tuple[str, ...] = ()
    allow_unauthenticated: bool = False
    local_without_key: bool = True
    tokens: Tokens | None = None


class Limits(_Section):
    call_timeout_seconds: Seconds = 60
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    max_result_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024
    max_frame_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    calls_per_connection: Annotated[int, Field(ge=1)] = 64
    max_sessions: Annotated[int, Field(ge=1)] = 10_000
    session_idle_seconds: Seconds = 1800
    input_seconds: Seconds = 300


class CallRate(_Section):
    per_minute: Annotated[int, Field(ge=1, le=1_000_000)]
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 20


class Rates(_Section):
    per_minute: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    tools: dict[str, CallRate] = {}


class PolicyRule(_Section):
    effect: Literal["allow", "deny"]
    principals: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    annotations: dict[Literal["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"], bool] = {}
    arguments: dict[str, dict[Operator, Any]] = {}
    reason: str = ""

    @model_validator(mode="after")
    def _patterns(self) -> PolicyRule:
        for tests in self.arguments.values():
            for operator, operand in tests.items():
                if operator in ("matches", "not_matches"):
                    try:
                        re.compile(operand)
                    except (re.error, TypeError) as exc:
                        raise ValueError(f"`{operator}` takes a regular expression: {exc}") from exc
                elif operator in ("in", "not_in") and not isinstance(operand, list):
                    raise ValueError(f"`{operator}` takes a list")
                elif operator in ("at_most", "at_least") and not isinstance(operand, int | float):
                    raise ValueError(f"`{operator}` takes a number")
                elif operator == "present" and not isinstance(operand, bool):
                    raise ValueError("`present` takes true or false")
        return self


class PolicySettings(_Section):
    default: Literal["allow", "deny"] = "allow"
    rules: tuple[PolicyRule, ...] = ()


class Breaker(_Section):
    window_seconds: Seconds = 30
    min_calls: Annotated[int, Field(ge=1)] = 10
    failure_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    open_seconds: Seconds = 5
    max_open_seconds: Seconds = 60
    probes: Annotated[int, Field(ge=1, le=100)] = 2


class Cache(_Section):
    enabled: bool = True
    ttl_seconds: Annotated[float, Field(ge=0)] = 60
    stale_seconds: Annotated[float, Field(ge=0)] = 300
    max_entries: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    max_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    max_result_bytes: Annotated[int, Field(ge=1)] = 1024 * 1024
    tools: dict[str, Annotated[float, Field(ge=0)]] = {}
    shared: tuple[str, ...] = ()


class Journal(_Section):
    enabled: bool = True
    keep_days: Annotated[float, Field(gt=0)] = 30
    keep_mb: Annotated[int, Field(ge=1)] = 1024
    max_body_bytes: Annotated[int, Field(ge=0)] = 4 * 1024 * 1024
    log_calls: bool = True


Action = Literal["accept", "report", "quarantine"]


class Pins(_Section):
    compatible: Action = "accept"
    breaking: Action = "report"
    suspicious: Action = "quarantine"
    first: Action = "report"


class Firewall(_Section):
    enabled: bool = True
    window_seconds: Seconds = 300
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.6


class Scores(_Section):
    enabled: bool = True


class Embeddings(_Section):
    mode: Literal["light", "semantic", "endpoint"] = "light"
    url: str | None = Field(None, pattern=r"^https?://")
    model: str = ""
    key: str | None = None
    index: Literal["auto", "exact", "hnsw", "milvus"] = "auto"
    milvus_uri: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Embeddings:
        if self.mode == "endpoint" and not (self.url and self.model):
            raise ValueError("mode `endpoint` needs `url` and `model`")
        if self.index == "milvus" and not self.milvus_uri:
            raise ValueError("index `milvus` needs `milvus_uri`")
        return self


class Tracing(_Section):
    endpoint: str | None = Field(None, pattern=r"^https?://")


class Servers(_Section):
    start_timeout_seconds: Seconds = 60
    max_start_failures: Annotated[int, Field(ge=1)] = 5
    drain_seconds: Seconds = 30
    heartbeat_seconds: Seconds = 20
    dead_after_seconds: Seconds = 60
    max_concurrent: Annotated[int, Field(ge=1)] = 256
    max_queued: Annotated[int, Field(ge=0)] = 1000
    retries: Annotated[int, Field(ge=0, le=10)] = 2


class Storage(_Section):
    data_dir: str = "data"
    database_url: str | None = None
    redis_url: str | None = Field(None, pattern=r"^(rediss?|unix)://")


class Events(_Section):
    keep: Annotated[int, Field(ge=100)] = 100_000
    queue: Annotated[int, Field(ge=10)] = 1000


Operator = Literal["equals", "not_equals", "in", "not_in", "matches", "not_matches", "at_most", "at_least", "present"]
Engine = Literal["fork", "fresh", "reset", "persistent", "restricted", "container"]


class PythonExecutor(_Section):
    engine: Engine = "fork"
    allowed_engines: tuple[Engine, ...] = ()
    timeout_seconds: Seconds = 30
    max_timeout_seconds: Seconds = 300
    memory_mb: Annotated[int, Field(ge=32)] = 512
    scratch_mb: Annotated[int, Field(ge=1)] = 64
    max_processes: Annotated[int, Field(ge=1)] = 64
    max_output_bytes: Annotated[int, Field(ge=1024)] = 1024 * 1024
    max_concurrent: Annotated[int, Field(ge=1, le=256)] = 16
    max_queued: Annotated[int, Field(ge=0)] = 256
    max_sessions: Annotated[int, Field(ge=0, le=200)] = 16
    max_sessions_per_principal: Annotated[int, Field(ge=0)] = 8
    session_idle_seconds: Seconds = 600
    packages: dict[str, tuple[str, ...]] = {"data": ("numpy", "pandas", "matplotlib")}
    allow_processes: bool = False
    min_tier: Literal["A", "B", "C"] = "C"
    max_executions: Annotated[int, Field(ge=1)] = 1000
    reused_processes: Annotated[int, Field(ge=1, le=64)] = 1
    interpreter: str | None = None
    container_image: str = "python:3.12-slim"
    container_command: str | None = None


class Logging(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Settings(BaseSettings):
    """Everything that can be set; each key is described in `config/`."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", populate_by_name=True
    )

    use_inprocess_python_executor: bool = True
    core_services: CoreServices = CoreServices()
    mcp_servers: OwnServers = OwnServers()
    access: Access = Access()
    limits: Limits = Limits()
    servers: Servers = Servers()
    storage: Storage = Storage()
    events: Events = Events()
    policy: PolicySettings = PolicySettings()
    rates: Rates = Rates()
    breaker: Breaker = Breaker()
    cache: Cache = Cache()
    pins: Pins = Pins()
    journal: Journal = Journal()
    scores: Scores = Scores()
    firewall: Firewall = Firewall()
    tracing: Tracing = Tracing()
    embeddings: Embeddings = Embeddings()
    discovery: DiscoveryRules = DiscoveryRules()
    python_executor: PythonExecutor = PythonExecutor()
    logging: Logging = Logging()
    upstreams: dict[str, UpstreamSpec] = Field(default_factory=dict, alias="mcpServers")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (EnvSettingsSource(settings_cls), init_settings)


class Loaded:
    """What was read.

    Attributes:
        settings: valid settings; a refused key has its default.
        problems: a line each: where, what, and what was expected.
        broken_servers: server id → why its entry was refused.
    """

    def __init__(self, settings: Settings, problems: list[str], broken_servers: dict[str, str]) -> None:
        self.settings = settings
        self.problems = problems
        self.broken_servers = broken_servers


class _File:
    """One settings file: its data, and the line of each key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        self.data: dict[str, Any] = {}
        self._lines: dict[tuple[str, ...], int] = {}
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as exc:
            self.problem = f"{path}: cannot be read: {exc}"
            return
        try:
            data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
            # JSON is read as YAML for its line numbers; tabs, which YAML refuses, only cost these.
            with contextlib.suppress(yaml.YAMLError):
                self._note(yaml.compose(text, Loader=yaml.SafeLoader), ())
        except json.JSONDecodeError as exc:
            self.problem = f"{path}:{exc.lineno}: not JSON: {exc.msg}"
            return
        except yaml.YAMLError as exc:
            mark = getattr(exc, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            self.problem = f"{path}{line}: not YAML: {getattr(exc, 'problem', None) or exc}"
            return
        if data is None:
            return
        if not isinstance(data, dict):
            self.problem = f"{path}:1: expected keys and values, found {type(data).__name__}"
            return
        self.data = data

    def keep_servers(self, problems: list[str]) -> None:
        """Of a file that MCP clients share keep the servers: under `mcpServers`, or `servers` as VS Code has it."""
        root = next((key for key in ("mcpServers", "servers") if key in self.data), None)
        if root is None:
            if self.data:
                found = ", ".join(map(repr, self.data))
                problems.append(f"{self.path}:1: expected the key 'mcpServers', found {found}")
            self.data = {}
            return
        self.data = {"mcpServers": self.data[root]}
        self._lines = {("mcpServers", *path[1:]): line for path, line in self._lines.items() if path[0] == root}

    def _note(self, node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = (*path, str(key.value))
                self._lines[below] = key.start_mark.line + 1
                self._note(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                below = (*path, str(index))
                self._lines[below] = value.start_mark.line + 1
                self._note(value, below)

    def line(self, path: tuple[str, ...]) -> int | None:
        """The line of a key, or of the nearest key around it."""
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return None


def database_url(settings: Settings) -> str:
    """Where state is kept, in SQLAlchemy's form: a file in the data folder unless the settings say otherwise."""
    return settings.storage.database_url or (
        f"sqlite+aiosqlite:///{Path(settings.storage.data_dir).absolute() / 'toolscore.db'}"
    )


def load_settings(config_dir: Path | None, environment: Mapping[str, str] = os.environ) -> Loaded:
    """Read the files that exist in `config_dir` (`None`: the embedded defaults) and the environment. Never raises."""
    files = [_File(config_dir / name) for name in FILES] if config_dir is not None else []
    problems = [file.problem for file in files if file.problem]
    data: dict[str, Any] = {}
    origin: dict[str, _File] = {}
    for file in files:
        if file.path.name == "mcp_servers.json":
            file.keep_servers(problems)
        for key, value in file.data.items():
            if key in data:
                problems.append(f"{file.path}:{file.line((key,))}: {key!r} stands in {origin[key].path} already")
                continue
            data[key], origin[key] = value, file
    problems += _unknown_variables(environment)
    broken: dict[str, str] = {}
    for _ in range(50):  # each round takes out what was refused; the rest is valid sooner or later
        try:
            return Loaded(Settings(**data), problems, broken)
        except ValidationError as exc:
            for error in exc.errors(include_url=False):
                path = tuple(str(part) for part in error["loc"])
                problem = _describe(error, path, origin, environment)
                if path[:1] == ("mcpServers",) and len(path) > 1:
                    broken.setdefault(path[1], problem)
                    path = path[:2]
                if problem not in problems:
                    problems.append(problem)
                _remove(data, path)
        except Exception as exc:  # a variable that should hold JSON and does not
            problems.append(f"environment: {exc}")
            break
    with _without_variables():
        return Loaded(Settings(), problems, broken)


@contextlib.contextmanager
def _without_variables() -> Any:
    kept = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(ENV_PREFIX)}
    try:
        yield
    finally:
        os.environ.update(kept)


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    known = [name for name in Settings.model_fields if name != "upstreams"]
    problems = []
    for variable in sorted(environment):
        if variable.startswith(ENV_PREFIX) and variable not in NOT_SETTINGS:
            name = variable.removeprefix(ENV_PREFIX).split("__")[0].lower()
            if name not in known:
                problems.append(f"environment variable {variable}: there is no setting {name!r}{_nearest(name, known)}")
    return problems


def _describe(error: Any, path: tuple[str, ...], origin: Mapping[str, _File], environment: Mapping[str, str]) -> str:
    dotted = ".".join(path)
    variable = ENV_PREFIX + "__".join(path).upper()
    file = origin.get(path[0]) if path else None
    if variable in environment:
        where = f"environment variable {variable}"
    elif file is not None:
        where = f"{file.path}:{file.line(path) or '?'}"
    else:
        where = "settings"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key {dotted!r}{_nearest(path[-1], _keys_beside(path))}"
    found = error.get("input")
    shown = "" if isinstance(found, dict | list) else f", found {found!r}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {dotted}: {message[:1].lower()}{message[1:]}{shown}"


def _keys_beside(path: tuple[str, ...]) -> list[str]:
    """The keys that may stand where an unknown one was found."""
    if path[0] == "mcpServers":
        return list(UpstreamSpec.model_fields)
    model: type[BaseModel] = Settings
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": expected one of {', '.join(known)}" if known else ""


def _remove(data: dict[str, Any], path: tuple[str, ...]) -> None:
    """Take out the deepest part of a path that is there."""
    holder: Any = data
    for index, part in enumerate(path):
        below = holder.get(part) if isinstance(holder, dict) else None
        if index == len(path) - 1 or not isinstance(below, dict) or path[index + 1] not in below:
            if isinstance(holder, dict):
                holder.pop(part, None)
            return
        holder = below


def differences(old: BaseModel, new: BaseModel, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The settings that differ: dotted path → (old value, new value). Servers count as one value each."""
    changed: dict[str, tuple[Any, Any]] = {}
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if isinstance(before, BaseModel) and not isinstance(before, UpstreamSpec):
            changed |= differences(before, after, f"{prefix}{name}.")
        elif isinstance(before, dict) and name == "upstreams":
            for key in before.keys() | after.keys():
                if before.get(key) != after.get(key):
                    changed[f"mcpServers.{key}"] = (before.get(key), after.get(key))
        else:
            changed[f"{prefix}{name}"] = (before, after)
    return changed


class SettingsHub:
    """The settings in force, and who wants to hear of a change."""

    def __init__(self, settings: Settings) -> None:
        self.current = settings
        self._callbacks: list[tuple[str, Callable[[Any, Any], None]]] = []

    def on_change(
        self, path: str, callback: Callable[[Any, Any], None] | None = None
    ) -> Callable[[Callable[[Any, Any], None]], Callable[[Any, Any], None]]:
        """Call `callback(old, new)` when the setting at this dotted path changes. Also a decorator.

        A path in front of others (`limits`) is called with the whole sections, once for a change of any of them.
        """

        def register(function: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
            self._callbacks.append((path, function))
            return function

        if callback is not None:
            register(callback)
        return register

    def swap(self, new: Settings) -> list[str]:
        """Put new settings in force and return the paths that changed. A failing callback is logged."""
        old, self.current = self.current, new
        changed = differences(old, new)
        for path, callback in self._callbacks:
            if path in changed:
                before, after = changed[path]
            elif any(name.startswith(f"{path}.") for name in changed):
                before, after = _at(old, path), _at(new, path)
            else:
                continue
            try:
                callback(before, after)
            except Exception:  # somebody else's code
                log.exception("a settings callback failed", path=path)
        return sorted(changed)


def _at(settings: Any, path: str) -> Any:
    for part in path.split("."):
        settings = getattr(settings, part, None)
    return settings


@asynccontextmanager
async def watch_files(config_dir: Path, changed: Callable[[], Any]) -> AsyncIterator[None]:
    """Call `changed` (a coroutine function, never twice at once) a second after the first of a burst of changes."""
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    loop = asyncio.get_running_loop()
    touched = asyncio.Event()

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if event.event_type in ("opened", "closed_no_write"):
                return  # our own reading
            paths = (str(event.src_path), str(getattr(event, "dest_path", "")))
            if any(os.path.basename(path) in FILES for path in paths):
                with contextlib.suppress(RuntimeError):  # the loop is gone: we are shutting down
                    loop.call_soon_threadsafe(touched.set)

    async def run() -> None:
        while True:
            await touched.wait()
            await asyncio.sleep(DEBOUNCE_SECONDS)
            touched.clear()
            try:
                await changed()
            except Exception:  # the watch outlives one failed reload
                log.exception("reloading the settings failed")

    observer = Observer()
    observer.schedule(Handler(), str(config_dir), recursive=False)
    observer.daemon = True
    observer.start()
    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        observer.stop()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(observer.join, 2)
