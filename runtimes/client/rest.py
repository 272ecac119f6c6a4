"""The REST API as async Python."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from runtimes.client.results import CodeResult, ToolResult, ToolScoreClientError

__all__ = ["ToolScoreClient", "authorization", "gateway_address"]

DEFAULT_URL = "http://127.0.0.1:8082"
NDJSON = "application/x-ndjson"


def gateway_address(url: str | None) -> str:
    """The address that is given; else that of `TOOLSCORE_URL`, else the default one of this machine."""
    found = (url or os.environ.get("TOOLSCORE_URL") or DEFAULT_URL).rstrip("/")
    if not found.startswith(("http://", "https://", "ws://", "wss://")):
        raise ValueError(f"a gateway is at an address such as {DEFAULT_URL}, found {found!r}")
    return found


def authorization(api_key: str | None) -> dict[str, str]:
    """The header that says who calls."""
    key = api_key or os.environ.get("TOOLSCORE_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


class ToolScoreClient:
    """Calls tools of a gateway. Use as `async with ToolScoreClient() as client`.

    Args:
        url: where the gateway answers; `None`: as `TOOLSCORE_URL` says, else on this machine.
        timeout_seconds: for everything but tool calls, whose time limit is the gateway's.
        api_key: from `toolscore keys create`; `None`: that of `TOOLSCORE_API_KEY`, if there is one.
        headers: sent with each request.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout_seconds: float = 30,
        api_key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._url = gateway_address(url)
        self._timeout = timeout_seconds
        self._headers = {**authorization(api_key), **(headers or {})}
        self._opened: httpx.AsyncClient | None = None

    async def __aenter__(self) -> ToolScoreClient:
        self._opened = httpx.AsyncClient(base_url=self._url, timeout=self._timeout, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._opened is None:
            raise RuntimeError("open the client first: async with ToolScoreClient() as client")
        return self._opened

    async def execute(
        self,
        tool_id: str,
        parameters: dict[str, Any] | None = None,
        *,
        action: str | None = None,
        timeout_seconds: float | None = None,
        session_id: str | None = None,
        cache: bool = True,
    ) -> ToolResult:
        """Run a tool. Cancelling this cancels the tool's work.

        Args:
            tool_id: full name; or a server's id, with the tool's own name in `action`.
            cache: a result that the gateway has kept may be the answer.

        Raises:
            ToolScoreClientError: the call failed. A tool that ran and failed is a result with `is_error`: ask it to
                `raise_for_tool_error`, or look.
        """
        body: dict[str, Any] = {"tool_id": tool_id, "parameters": parameters or {}}
        optional = {"action": action, "timeout_seconds": timeout_seconds, "session_id": session_id}
        body |= {key: value for key, value in optional.items() if value is not None}
        if not cache:
            body["cache"] = False
        answer = await self._request(
            "POST", "/execute_tool", json=body, timeout=httpx.Timeout(self._timeout, read=None)
        )
        known = {one.name: answer["data"][one.name] for one in fields(ToolResult) if one.name in answer["data"]}
        return ToolResult(
            **known,
            duration_ms=answer["performance"]["duration_ms"],
            age_seconds=answer["performance"].get("age_seconds"),
        )

    async def tools(self, *, server_id: str | None = None, text: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """All tools, page by page."""
        params: dict[str, Any] = {"limit": 500}
        params |= {key: value for key, value in (("server_id", server_id), ("q", text)) if value is not None}
        while True:
            data = (await self._request("GET", "/api/v1/tools", params=params))["data"]
            for tool in data["tools"]:
                yield tool
            if not data["next_cursor"]:
                return
            params["cursor"] = data["next_cursor"]

    async def tool(self, tool_id: str) -> dict[str, Any]:
        """One tool, with its schema."""
        return await self._data("GET", f"/api/v1/tools/{_segment(tool_id)}")

    async def search(self, query: str, *, limit: int = 10) -> list[dict[str, Any]]:
        """The tools for a task, best first, each with its schema, `relevance` and `score`."""
        body = {"query": query, "limit": limit}
        found: list[dict[str, Any]] = (await self._data("POST", "/api/v1/tools/search", json=body))["tools"]
        return found

    async def analyze_gap(self, task: str, *, context: str = "") -> dict[str, Any]:
        """Whether the tools here can do a task: `verdict`, `confidence`, `steps`, `missing`."""
        body = {"task_description": task, **({"context": context} if context else {})}
        return await self._data("POST", "/api/v1/tools/analyze-gap", json=body)

    async def request_capability(self, task: str, *, context: str = "") -> dict[str, Any]:
        """Get what is missing for a task, as far as the operator's policy allows: `status`, `next`, `tools`, …

        May take a minute: a server is fetched and tried.
        """
        body = {"task_description": task, **({"context": context} if context else {})}
        return await self._data(
            "POST", "/api/v1/tools/request-capability", json=body, timeout=httpx.Timeout(self._timeout, read=None)
        )

    async def catalog(self, query: str, *, limit: int = 10) -> list[dict[str, Any]]:
        """Servers in the catalogs that fit a query."""
        params: dict[str, Any] = {"q": query, "limit": limit}
        found: list[dict[str, Any]] = (await self._data("GET", "/api/v1/catalog/search", params=params))["servers"]
        return found

    async def install(self, name: str, **options: Any) -> dict[str, Any]:
        """Install a server of a catalog, with the other members of `POST /api/v1/catalog/install`."""
        return await self._data(
            "POST",
            "/api/v1/catalog/install",
            json={"name": name, **options},
            timeout=httpx.Timeout(self._timeout, read=None),
        )

    async def installed(self) -> list[dict[str, Any]]:
        """The servers that were installed from a catalog."""
        found: list[dict[str, Any]] = (await self._data("GET", "/api/v1/catalog/installed"))["servers"]
        return found

    async def uninstall(self, name: str) -> None:
        """Remove a server that was installed."""
        await self._data("DELETE", f"/api/v1/catalog/installed/{quote(name)}")

    async def calls(self, *, limit: int = 100, **filters: str) -> list[dict[str, Any]]:
        """Past calls, the newest first.

        Args:
            filters: `tool_id`, `server_id`, `principal`, `outcome`, `request_id`, `parent`, `since`, `until`.
        """
        params: dict[str, Any] = {"limit": limit, **filters}
        found: list[dict[str, Any]] = (await self._data("GET", "/api/v1/calls", params=params))["calls"]
        return found

    async def call(self, call_id: str) -> dict[str, Any]:
        """One past call, with `arguments` and `result`; of a run of code also `calls`, those that it made."""
        return await self._data("GET", f"/api/v1/calls/{_segment(call_id)}")

    async def describe_tools(
        self, *, names: Sequence[str] = (), query: str | None = None, max_tokens: int = 2000
    ) -> tuple[str, list[str]]:
        """Tools as a Python stub file, as code in `run_code` calls them; and the names that did not fit.

        Raises:
            ToolFailed: a name is none.
        """
        wanted: dict[str, Any] = {"max_tokens": max_tokens}
        if names:
            wanted["names"] = _names(names)
        if query:
            wanted["query"] = query
        found = (await self.execute("toolscore__describe_tools", wanted)).raise_for_tool_error().structured_content
        return found["stubs"], found["left_out"]

    async def run_code(
        self,
        code: str,
        *,
        tools: Sequence[str] | None = None,
        timeout_seconds: float | None = None,
        session_id: str | None = None,
        packages: Sequence[str] = (),
        files: Sequence[dict[str, Any]] = (),
        on_event: Callable[[dict[str, Any]], None] | None = None,
        request_id: str | None = None,
    ) -> CodeResult:
        """Run Python that calls tools, in the gateway's sandbox. Cancelling this ends it, and the calls that it made.

        Args:
            tools: all that it may call, names or patterns; `None`: what only reads.
            session_id: keep variables for later runs.
            on_event: is told of `stdout` and `progress` events as they come.
            request_id: by which the run is found in the journal, also where its answer never came.

        Raises:
            ToolScoreClientError: it could not be run. Code that fails is a result with `error`.
        """
        body: dict[str, Any] = {"code": code}
        optional = {
            "tools": _names(tools), "timeout_seconds": timeout_seconds,
            "session_id": session_id, "packages": _names(packages) or None, "files": list(files) or None,
        }  # fmt: skip
        body |= {name: value for name, value in optional.items() if value is not None}
        end: dict[str, Any] | None = None
        headers = {"accept": NDJSON, **({"x-request-id": request_id} if request_id is not None else {})}
        try:
            async with self._http.stream(
                "POST", "/api/v1/code/run", json=body, headers=headers,
                timeout=httpx.Timeout(self._timeout, read=None),
            ) as response:  # fmt: skip
                if response.headers.get("content-type") != NDJSON:
                    await response.aread()
                    self._answer(response)
                async for line in response.aiter_lines():
                    event = json.loads(line)
                    if event["event"] == "end":
                        end = event
                    elif on_event is not None:
                        on_event(event)
        except httpx.ConnectError as exc:
            raise ToolScoreClientError(
                f"no gateway answers at {self._url}: {exc}", code="unreachable", retryable=True
            ) from exc
        except httpx.TransportError as exc:
            raise ToolScoreClientError(f"{self._url} went away: {exc}", code="outcome_unknown") from exc
        if end is None:
            raise ToolScoreClientError(f"{self._url} went away before the code had ended", code="outcome_unknown")
        data = _succeeded(end, response.status_code)["data"]
        text = "\n".join(str(block.get("text", "")) for block in data["content"] if block.get("type") == "text")
        run, structured = data["run"] or {}, data["structured_content"]
        if structured is None:
            return CodeResult(data["call_id"], text, exit="refused")
        return CodeResult(
            data["call_id"], text, structured["stdout"], structured["stderr"], structured["result"],
            structured["error"], structured["exit"], tuple(structured["files"]),
            tuple(block for block in data["content"] if block.get("type") == "image"),
            run.get("calls", 0), run.get("failed", 0), structured["duration_ms"],
        )  # fmt: skip

    async def servers(self) -> list[dict[str, Any]]:
        """The servers behind the gateway."""
        servers: list[dict[str, Any]] = (await self._data("GET", "/api/v1/servers"))["servers"]
        return servers

    async def attach(self, server_id: str, **spec: Any) -> dict[str, Any]:
        """Add a server, with the keys of an `mcpServers` entry (`command`, `args`, `env`, or `url`, `headers`)."""
        return await self._data("POST", "/api/v1/servers", json={"server_id": server_id, **spec})

    async def detach(self, server_id: str) -> None:
        """Remove a server that was attached."""
        await self._data("DELETE", f"/api/v1/servers/{_segment(server_id)}")

    async def health(self) -> dict[str, Any]:
        """`status` and a check for each part."""
        return await self._data("GET", "/health")

    async def stats(self) -> dict[str, Any]:
        """Figures."""
        return await self._data("GET", "/api/v1/stats")

    async def _data(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        data: dict[str, Any] = (await self._request(method, path, **options))["data"]
        return data

    async def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            return self._answer(await self._http.request(method, path, **options))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
            raise ToolScoreClientError(
                f"no gateway answers at {self._url}: {exc}", code="unreachable", retryable=True
            ) from exc
        except httpx.TransportError as exc:
            if method == "GET":
                raise ToolScoreClientError(f"{self._url} went away: {exc}", code="unreachable", retryable=True) from exc
            raise ToolScoreClientError(  # it may have been carried out
                f"{self._url} went away before it answered: {exc}", code="outcome_unknown"
            ) from exc

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = response.json()
        except ValueError as exc:
            raise ToolScoreClientError(
                f"{self._url} answered no JSON (HTTP {response.status_code})", code="unreachable"
            ) from exc
        return _succeeded(answer, response.status_code)


def _names(given: Sequence[str] | None) -> list[str] | None:
    """Names as a list; one alone is one name."""
    return [given] if isinstance(given, str) else list(given) if given is not None else None


def _succeeded(answer: dict[str, Any], status: int) -> dict[str, Any]:
    """An answer's envelope, if it tells of success.

    Raises:
        ToolScoreClientError
    """
    if answer.get("success"):
        return answer
    error = answer.get("error") or {}
    raise ToolScoreClientError(
        error.get("message", f"HTTP {status}"),
        code=error.get("code", "internal_error"),
        status=status,
        retryable=bool(error.get("retryable")),
        retry_after_seconds=error.get("retry_after_seconds"),
        suggestion=error.get("suggestion"),
    )


def _segment(name: str) -> str:
    """A name as one segment of an address."""
    return quote(name, safe="")
