"""A stateless server with the tasks extension (`io.modelcontextprotocol/tasks`), as the conformance suite expects it.

    tasks_http.py PORT

No SDK has the extension yet, so this one is written by hand.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

import uvicorn

EXTENSION = "io.modelcontextprotocol/tasks"
META = "io.modelcontextprotocol/"
REQUIRED = {"failing_job", "test_tool_with_task"}
TASKS: dict[str, Task] = {}


class Refused(Exception):
    def __init__(self, code: int, message: str, data: Any = None) -> None:
        self.error = {"code": code, "message": message, **({"data": data} if data is not None else {})}


class Task:
    def __init__(self, work: Any, arguments: dict[str, Any]) -> None:
        self.id = str(uuid.uuid4())
        self.status = "working"
        self.created = self.updated = datetime.now(UTC).isoformat()
        self.outcome: dict[str, Any] = {}
        self.questions: dict[str, tuple[dict[str, Any], asyncio.Future[Any]]] = {}
        TASKS[self.id] = self
        self.running = asyncio.create_task(self._run(work, arguments))

    async def _run(self, work: Any, arguments: dict[str, Any]) -> None:
        try:
            self.settle("completed", {"result": await work(self, arguments)})
        except asyncio.CancelledError:
            self.settle("cancelled", {})
        except Exception as exc:
            self.settle("failed", {"error": {"code": -32603, "message": str(exc)}})

    def settle(self, status: str, outcome: dict[str, Any]) -> None:
        self.status, self.outcome, self.updated = status, outcome, datetime.now(UTC).isoformat()

    async def ask(self, *messages: str) -> list[Any]:
        futures = []
        for message in messages:
            schema = {"type": "object", "properties": {"confirm": {"type": "boolean"}}}
            request = {
                "method": "elicitation/create",
                "params": {"mode": "form", "message": message, "requestedSchema": schema},
            }
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self.questions[uuid.uuid4().hex[:8]] = (request, future)
            futures.append(future)
        return list(await asyncio.gather(*futures))

    def shown(self) -> dict[str, Any]:
        status = "input_required" if self.questions and self.status == "working" else self.status
        shown = {
            "taskId": self.id,
            "status": status,
            "createdAt": self.created,
            "lastUpdatedAt": self.updated,
            "ttlMs": 60000,
            "pollIntervalMs": 100,
            **self.outcome,
        }
        if status == "input_required":
            shown["inputRequests"] = {key: request for key, (request, _) in self.questions.items()}
        return shown


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}], **more}


async def slow_compute(_task: Task | None, arguments: dict[str, Any]) -> Any:
    await asyncio.sleep(float(arguments.get("seconds", 0)))
    return text("computed")


async def failing_job(_task: Task | None, _arguments: dict[str, Any]) -> Any:
    await asyncio.sleep(0.3)
    return text("the job failed", isError=True)


async def protocol_error_job(_task: Task | None, _arguments: dict[str, Any]) -> Any:
    raise RuntimeError("panic")


async def confirm_delete(task: Task | None, _arguments: dict[str, Any]) -> Any:
    answers = await task.ask("Delete?") if task is not None else []
    return text(f"deleted: {json.dumps(answers)}")


async def multi_input(task: Task | None, _arguments: dict[str, Any]) -> Any:
    answers = await task.ask("First?", "Second?") if task is not None else []
    return text(f"both: {json.dumps(answers)}")


async def named(_task: Task | None, arguments: dict[str, Any]) -> Any:
    return text(f"for {arguments['user_name']}")


TOOLS = {
    "slow_compute": slow_compute,
    "failing_job": failing_job,
    "protocol_error_job": protocol_error_job,
    "confirm_delete": confirm_delete,
    "multi_input": multi_input,
    "test_tool_with_task": named,
}


async def call_tool(params: dict[str, Any], may_task: bool) -> dict[str, Any]:
    name, arguments = params["name"], params.get("arguments") or {}
    if name == "greet":
        return text(f"Hello, {arguments.get('name', 'you')}!")
    if name not in TOOLS:
        raise Refused(-32602, f"unknown tool: {name}")
    if not may_task:
        if name in REQUIRED:
            raise Refused(-32021, "this tool makes tasks", {"requiredCapabilities": {"extensions": {EXTENSION: {}}}})
        return dict(await TOOLS[name](None, arguments))
    if name == "test_tool_with_task":
        answer = (params.get("inputResponses") or {}).get("user_name")
        if answer is None:
            schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
            ask = {"mode": "form", "message": "Name?", "requestedSchema": schema}
            requests = {"user_name": {"method": "elicitation/create", "params": ask}}
            return {"resultType": "input_required", "inputRequests": requests, "requestState": "round-1"}
        arguments = {"user_name": json.dumps(answer.get("content"))}
    if name == "slow_compute" and not float(arguments.get("seconds", 0)):
        return dict(await slow_compute(None, arguments))
    return {**Task(TOOLS[name], arguments).shown(), "resultType": "task"}


def known(params: dict[str, Any], may_task: bool) -> Task:
    if not may_task:
        raise Refused(-32021, "tasks were not negotiated", {"requiredCapabilities": {"extensions": {EXTENSION: {}}}})
    task = TASKS.get(str(params.get("taskId")))
    if task is None:
        raise Refused(-32602, "unknown task")
    return task


async def handle(method: str, params: dict[str, Any]) -> dict[str, Any]:
    declared = params.get("_meta", {}).get(f"{META}clientCapabilities", {})
    may_task = EXTENSION in (declared.get("extensions") or {})
    if method == "server/discover":
        return {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}, "extensions": {EXTENSION: {}}}}
    if method == "tools/list":
        names = ["greet", *TOOLS]
        return {"tools": [{"name": name, "description": name, "inputSchema": {"type": "object"}} for name in names]}
    if method == "tools/call":
        return await call_tool(params, may_task)
    if method == "tasks/get":
        return known(params, may_task).shown()
    if method == "tasks/cancel":
        known(params, may_task).running.cancel()
        await asyncio.sleep(0)
        return {}
    if method == "tasks/update":
        task = known(params, may_task)
        for key, answer in (params.get("inputResponses") or {}).items():
            if key in task.questions:
                task.questions.pop(key)[1].set_result(answer)
        return {}
    raise Refused(-32601, f"Method not found: {method}")


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    request = json.loads(body or b"{}")
    status, answer = 200, {"jsonrpc": "2.0", "id": request.get("id")}
    try:
        result = await handle(request.get("method", ""), request.get("params") or {})
        defaults = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        answer["result"] = {**(defaults if "ttlMs" not in result else {"resultType": "complete"}), **result}
    except Refused as exc:
        status, answer["error"] = {-32601: 404}.get(exc.error["code"], 400), exc.error
    payload = json.dumps(answer).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": payload})


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="off")
