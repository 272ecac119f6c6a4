"""Every setting, composed of what each room can be told; and what has changed between two of them.

A setting is written in the `…Rules` class of the room that obeys it, and nowhere else. Rooms get their classes from
`toolscore.app`; nothing below this floor reads settings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, Field, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from toolscore.access.auth import AccessRules
from toolscore.access.limits import RateRules
from toolscore.access.policy import PolicyRules
from toolscore.app.executor import PythonExecutorRules
from toolscore.calls.breaker import BreakerRules
from toolscore.calls.cache import CacheRules
from toolscore.calls.code_run import CodeRules
from toolscore.core.hosts import is_loopback, local_host
from toolscore.core.models import UpstreamSpec
from toolscore.core.rules import LimitRules, NameRules, Port, Rules, ServerRules
from toolscore.discovery.rules import DiscoveryRules
from toolscore.embedding import EmbeddingRules
from toolscore.history.events import EventRules
from toolscore.history.firewall import FirewallRules
from toolscore.history.journal import JournalRules
from toolscore.history.scores import ScoreRules
from toolscore.replicas.rules import ReplicaRules
from toolscore.stores.rules import StoreRules
from toolscore.telemetry.rules import LogRules, TracingRules
from toolscore.tools.pins import PinRules
from toolscore.upstreams.references import REFERENCE

__all__ = ["ENV_PREFIX", "Settings", "SettingsHub", "differences", "needs_restart"]

log = structlog.get_logger(__name__)

ENV_PREFIX = "TOOLSCORE_"


class HttpService(Rules):
    """REST, MCP over HTTP, events, health."""

    host: str = Field("127.0.0.1", description="beyond this machine only with keys (`toolscore keys create`)")
    port: Port = Field(8082, description="0: any free port")
    tls_cert: str | None = Field(
        None, description="a PEM file: https and wss instead of http and ws; read again when it changes"
    )
    tls_key: str | None = Field(None, description="its private key, if that stands in a file of its own")

    @property
    def scheme(self) -> str:
        """Of its addresses: `http` or `https`."""
        return "https" if self.tls_cert else "http"

    @property
    def local_url(self) -> str:
        """Its address for a program on this machine."""
        return f"{self.scheme}://{local_host(self.host)}:{self.port}"


class RouterService(Rules):
    """The WebSocket router: MCP clients, typed clients, servers that dial in."""

    host: str = "127.0.0.1"
    port: Port = Field(8081, description="0: any free port")
    endpoint: str = Field("/websocket", pattern=r"^/", description="the path at which clients connect")
    unix_socket: str | None = Field(None, description="a path; for clients on this machine")

    def local_url(self, path: str) -> str:
        """The address of a path of the router for a program on this machine, in the form that `websockets` dials."""
        if self.unix_socket:
            return f"ws+unix://{Path(self.unix_socket).absolute()}:{path}"
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else self.host  # noqa: S104
        return f"ws://{f'[{host}]' if ':' in host else host}:{self.port}{path}"


class CoreServices(Rules):
    """Where the gateway listens."""

    needs_restart = True

    toolscore_http: HttpService = HttpService()
    toolscore_mcp: RouterService = RouterService()

    @property
    def own_ports(self) -> tuple[int, int]:
        """The ports of both."""
        return self.toolscore_http.port, self.toolscore_mcp.port


class PythonExecutorService(Rules):
    """The executor as a process of its own."""

    host: str = "127.0.0.1"
    port: Port | None = Field(
        None, description="MCP over HTTP, beside the router, past policy, rates and journal; null: not at all"
    )
    secret: str | None = Field(
        None,
        description="what callers show there as `Authorization: Bearer …`: ${env:NAME} or ${file:/path}",
    )
    auto_start: bool = Field(True, description="false: it is started by somebody else, and dials in")
    required: bool = Field(False, description="whether /readyz says 503 while none is connected")

    @model_validator(mode="after")
    def _guarded(self) -> PythonExecutorService:
        if self.port is not None and not (self.secret and REFERENCE.fullmatch(self.secret)):
            raise ValueError(
                "whoever reaches `port` runs code: give a `secret` that callers show, as ${env:NAME} or ${file:/path}"
            )
        return self


class OwnServers(Rules):
    """Our own servers."""

    python_executor: PythonExecutorService = PythonExecutorService()


class Settings(BaseSettings):
    """Everything that can be set; each key is described in `config/`."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", populate_by_name=True
    )

    use_inprocess_python_executor: bool = Field(
        True, description="whether our Python executor runs in the gateway; it moves live when this changes"
    )
    core_services: CoreServices = CoreServices()
    mcp_servers: OwnServers = OwnServers()
    access: AccessRules = AccessRules()
    limits: LimitRules = LimitRules()
    servers: ServerRules = ServerRules()
    names: NameRules = NameRules()
    storage: StoreRules = StoreRules()
    replicas: ReplicaRules = ReplicaRules()
    events: EventRules = EventRules()
    policy: PolicyRules = PolicyRules()
    rates: RateRules = RateRules()
    breaker: BreakerRules = BreakerRules()
    cache: CacheRules = CacheRules()
    pins: PinRules = PinRules()
    journal: JournalRules = JournalRules()
    scores: ScoreRules = ScoreRules()
    firewall: FirewallRules = FirewallRules()
    tracing: TracingRules = TracingRules()
    embeddings: EmbeddingRules = EmbeddingRules()
    discovery: DiscoveryRules = DiscoveryRules()
    code: CodeRules = CodeRules()
    python_executor: PythonExecutorRules = PythonExecutorRules()
    logging: LogRules = LogRules()
    upstreams: dict[str, UpstreamSpec] = Field(default_factory=dict, alias="mcpServers")

    @property
    def is_local(self) -> bool:
        """Whether all who reach the HTTP port count as users of this machine."""
        return is_loopback(self.core_services.toolscore_http.host) or self.access.allow_unauthenticated

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (EnvSettingsSource(settings_cls), init_settings)


def needs_restart(path: str) -> bool:
    """Whether a setting at this dotted path counts only at the next start: open sockets, the open database."""
    field = Settings.model_fields.get(path.split(".", maxsplit=1)[0])
    return field is not None and isinstance(field.default, Rules) and field.default.needs_restart


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
