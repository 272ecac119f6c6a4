"""The REST API as async Python."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

import httpx

__all__ = ["ToolFailed", "ToolResult", "ToolScoreClient", "ToolScoreClientError", "authorization"]

DEFAULT_URL = "http://127.0.0.1:8082"


class ToolScoreClientError(Exception):
    """The gateway refused, or could not be reached.

    Attributes:
        code: the gateway's error code (`tool_not_found`, `outcome_unknown`, …), or `unreachable`.
        status: HTTP status, 0 where there was no answer.
        retryable: whether the same call may be made again.
        retry_after_seconds: how long to wait before, where the gateway said so.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int = 0,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        suggestion: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}" + (f" ({suggestion})" if suggestion else ""))
        self.code = code
        self.message = message
        self.status = status
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.suggestion = suggestion


@dataclass(frozen=True)
class ToolResult:
    """What a tool answered.

    Attributes:
        content: MCP content blocks.
        is_error: the tool ran and failed.
        suggestion: what helped others whose call failed like this.
        age_seconds: of a result that was kept by the gateway; `None`: the tool has just made it.
    """

    call_id: str
    tool_id: str
    content: list[dict[str, Any]]
    structured_content: Any
    is_error: bool
    duration_ms: float
    suggestion: str | None = None
    age_seconds: float | None = None

    def raise_for_tool_error(self) -> ToolResult:
        """This result, if the tool did its work.

        Raises:
            ToolFailed: it ran and failed.
        """
        if self.is_error:
            raise ToolFailed(self)
        return self

    @property
    def text(self) -> str:
        """The text blocks, a line break between them."""
        return "\n".join(str(block.get("text", "")) for block in self.content if block.get("type") == "text")


class ToolFailed(Exception):
    """A tool ran and reported an error.

    Attributes:
        result: what it said.
    """

    def __init__(self, result: ToolResult) -> None:
        super().__init__(f"{result.tool_id}: {result.text or 'it reported an error'}")
        self.result = result


def authorization(api_key: str | None) -> dict[str, str]:
    """The header that says who calls."""
    key = api_key or os.environ.get("TOOLSCORE_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


class ToolScoreClient:
    """Calls tools of a gateway. Use as `async with ToolScoreClient() as client`.

    Args:
        url: where the gateway answers.
        timeout_seconds: for everything but tool calls, whose time limit is the gateway's.
        api_key: from `toolscore keys create`; `None`: that of `TOOLSCORE_API_KEY`, if there is one.
        headers: sent with each request.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_seconds: float = 30,
        api_key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._url = url
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
        return await self._data("GET", f"/api/v1/tools/{tool_id}")

    async def servers(self) -> list[dict[str, Any]]:
        """The servers behind the gateway."""
        servers: list[dict[str, Any]] = (await self._data("GET", "/api/v1/servers"))["servers"]
        return servers

    async def attach(self, server_id: str, **spec: Any) -> dict[str, Any]:
        """Add a server, with the keys of an `mcpServers` entry (`command`, `args`, `env`, or `url`, `headers`)."""
        return await self._data("POST", "/api/v1/servers", json={"server_id": server_id, **spec})

    async def detach(self, server_id: str) -> None:
        """Remove a server that was attached."""
        await self._data("DELETE", f"/api/v1/servers/{server_id}")

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
            response = await self._http.request(method, path, **options)
            answer: dict[str, Any] = response.json()
        except httpx.TransportError as exc:
            raise ToolScoreClientError(
                f"no gateway answers at {self._url}: {exc}", code="unreachable", retryable=True
            ) from exc
        except ValueError as exc:
            raise ToolScoreClientError(
                f"{self._url} answered no JSON (HTTP {response.status_code})", code="unreachable"
            ) from exc
        if not answer.get("success"):
            error = answer.get("error") or {}
            raise ToolScoreClientError(
                error.get("message", f"HTTP {response.status_code}"),
                code=error.get("code", "internal_error"),
                status=response.status_code,
                retryable=bool(error.get("retryable")),
                retry_after_seconds=error.get("retry_after_seconds"),
                suggestion=error.get("suggestion"),
            )
        return answer
