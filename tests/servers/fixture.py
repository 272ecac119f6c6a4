"""The server that the official conformance suite expects, on the official SDK; the scenarios print its contract.

    fixture.py stdio | http PORT | dial URL SERVER_ID  [--session-only]

Both eras, each tool written once: what a session's client is asked live, a stateless one is asked by `input_required`.
With `--session-only` it refuses the stateless era, as a server of last year does.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from mcp.server import Server, ServerRequestContext
from mcp.server.lowlevel import NotificationOptions
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from websockets.asyncio.client import connect

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="
KEY = b"the fixture's own"
STATELESS = "2026-07-28"
Context = ServerRequestContext[Any]
bus = InMemorySubscriptionBus()


def elicit(message: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": schema}}


def sample(prompt: str, tokens: int = 100) -> dict[str, Any]:
    messages = [{"role": "user", "content": {"type": "text", "text": prompt}}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": tokens}}


ROOTS = {"method": "roots/list", "params": {}}
FEATURE = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}
SHAPES: dict[str, tuple[Any, Any]] = {
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}


class InputRequired(Exception):
    def __init__(self, requests: dict[str, Any], state: str | None) -> None:
        members: dict[str, Any] = {"resultType": "input_required", "inputRequests": requests}
        if state is not None:
            members["requestState"] = state
        self.result = types.InputRequiredResult.model_validate(members)


def sealed(round_number: int) -> str:
    payload = json.dumps({"round": round_number})
    return f"{payload}.{hmac.new(KEY, payload.encode(), hashlib.sha256).hexdigest()}"


def opened(state: str | None) -> int:
    """The round that a state of ours belongs to; 0 without one."""
    if state is None:
        return 0
    payload, _, signature = state.rpartition(".")
    if not hmac.compare_digest(signature, hmac.new(KEY, payload.encode(), hashlib.sha256).hexdigest()):
        raise MCPError(code=types.INVALID_PARAMS, message="requestState was changed")
    return int(json.loads(payload)["round"])


def capabilities(ctx: Context) -> dict[str, Any]:
    declared = ctx.session.client_capabilities
    return declared.model_dump(by_alias=True, exclude_none=True) if declared is not None else {}


async def ask(
    ctx: Context, params: Any, requests: dict[str, dict[str, Any]], state: str | None = None
) -> dict[str, dict[str, Any]]:
    """What the client answers, by key."""
    for request in requests.values():
        feature = FEATURE[request["method"]]
        if feature not in capabilities(ctx):
            raise MCPError(
                code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
                message=f"this tool needs {feature}",
                data={"requiredCapabilities": {feature: {}}},
            )
    if ctx.protocol_version == STATELESS:
        given = {key: dump(value) for key, value in (params.input_responses or {}).items()}
        if any(key not in given for key in requests):
            raise InputRequired(requests, state)
        return {key: given[key] for key in requests}
    related = ServerMessageMetadata(related_request_id=ctx.request_id)

    async def live(request: dict[str, Any]) -> dict[str, Any]:
        kind, result = SHAPES[request["method"]]
        return dump(await ctx.session.send_request(kind.model_validate(request), result, metadata=related))

    return dict(zip(requests, await asyncio.gather(*map(live, requests.values())), strict=True))


def dump(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else value.model_dump(by_alias=True, mode="json", exclude_none=True)


def text(message: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": message}]}


NAME = {"name": {"type": "string"}}
TOOLS: dict[str, Any] = {}
SCHEMAS: dict[str, Any] = {}


def tool(**schema: Any) -> Any:
    def register(function: Any) -> Any:
        TOOLS[function.__name__] = function
        SCHEMAS[function.__name__] = {"type": "object", **schema}
        return function

    return register


def strings(*names: str) -> dict[str, Any]:
    return {"properties": {name: {"type": "string"} for name in names}, "required": list(names)}


@tool()
async def test_simple_text(ctx: Context, params: Any) -> Any:
    return text("This is a simple text response for testing.")


@tool()
async def test_image_content(ctx: Context, params: Any) -> Any:
    return {"content": [{"type": "image", "data": PNG, "mimeType": "image/png"}]}


@tool()
async def test_audio_content(ctx: Context, params: Any) -> Any:
    return {"content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]}


@tool()
async def test_embedded_resource(ctx: Context, params: Any) -> Any:
    resource = {
        "uri": "test://embedded-resource",
        "mimeType": "text/plain",
        "text": "This is an embedded resource content.",
    }
    return {"content": [{"type": "resource", "resource": resource}]}


@tool()
async def test_multiple_content_types(ctx: Context, params: Any) -> Any:
    resource = {
        "uri": "test://mixed-content-resource",
        "mimeType": "application/json",
        "text": '{"test":"data","value":123}',
    }
    return {
        "content": [
            {"type": "text", "text": "Multiple content types test:"},
            {"type": "image", "data": PNG, "mimeType": "image/png"},
            {"type": "resource", "resource": resource},
        ]
    }


@tool()
async def test_error_handling(ctx: Context, params: Any) -> Any:
    return {**text("This tool intentionally returns an error for testing"), "isError": True}


async def say(ctx: Context, message: str) -> None:
    await ctx.session.send_log_message("info", message, logger="fixture", related_request_id=ctx.request_id)


@tool()
async def test_tool_with_logging(ctx: Context, params: Any) -> Any:
    await say(ctx, "Tool execution started")
    await asyncio.sleep(0.05)
    await say(ctx, "Tool processing data")
    await asyncio.sleep(0.05)
    await say(ctx, "Tool execution completed")
    return text("Tool with logging executed successfully")


TOOLS["test_logging_tool"] = test_tool_with_logging
SCHEMAS["test_logging_tool"] = {"type": "object"}


@tool()
async def test_tool_with_progress(ctx: Context, params: Any) -> Any:
    for done in (0, 50, 100):
        await ctx.session.report_progress(done, 100)
        await asyncio.sleep(0.05)
    return text("done")


@tool(**strings("prompt"))
async def test_sampling(ctx: Context, params: Any) -> Any:
    answer = (await ask(ctx, params, {"sample": sample(params.arguments["prompt"])}))["sample"]
    return text(f"LLM response: {answer['content']['text']}")


@tool(**strings("message"))
async def test_elicitation(ctx: Context, params: Any) -> Any:
    request = elicit(
        params.arguments["message"],
        username={"type": "string", "description": "User's response"},
        email={"type": "string", "description": "User's email address"},
    )
    answer = (await ask(ctx, params, {"user": request}))["user"]
    return text(f"User response: action={answer['action']}, content={json.dumps(answer.get('content'))}")


async def completed(ctx: Context, params: Any, properties: dict[str, Any]) -> Any:
    request = elicit("Please review", **properties)
    request["params"]["requestedSchema"].pop("required")
    answer = (await ask(ctx, params, {"form": request}))["form"]
    return text(f"Elicitation completed: action={answer['action']}, content={json.dumps(answer.get('content'))}")


@tool()
async def test_elicitation_sep1034_defaults(ctx: Context, params: Any) -> Any:
    return await completed(
        ctx,
        params,
        {
            "name": {"type": "string", "default": "John Doe"},
            "age": {"type": "integer", "default": 30},
            "score": {"type": "number", "default": 95.5},
            "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            "verified": {"type": "boolean", "default": True},
        },
    )


@tool()
async def test_elicitation_sep1330_enums(ctx: Context, params: Any) -> Any:
    options = ["option1", "option2", "option3"]
    titled = [
        {"const": f"value{n}", "title": f"{name} Option"} for n, name in enumerate(("First", "Second", "Third"), 1)
    ]
    choices = [
        {"const": f"value{n}", "title": f"{name} Choice"} for n, name in enumerate(("First", "Second", "Third"), 1)
    ]
    return await completed(
        ctx,
        params,
        {
            "untitledSingle": {"type": "string", "enum": options},
            "titledSingle": {"type": "string", "oneOf": titled},
            "legacyEnum": {
                "type": "string",
                "enum": ["opt1", "opt2", "opt3"],
                "enumNames": ["Option One", "Option Two", "Option Three"],
            },
            "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
            "titledMulti": {"type": "array", "items": {"anyOf": choices}},
        },
    )


@tool()
async def test_input_required_result_elicitation(ctx: Context, params: Any) -> Any:
    answer = (await ask(ctx, params, {"user_name": elicit("What is your name?", **NAME)}))["user_name"]
    content = answer.get("content")
    if ctx.protocol_version == STATELESS and not (isinstance(content, dict) and isinstance(content.get("name"), str)):
        raise InputRequired({"user_name": elicit("What is your name?", **NAME)}, None)
    return text(f"Hello, {(content or {}).get('name')}!")


@tool()
async def test_input_required_result_sampling(ctx: Context, params: Any) -> Any:
    requests = {"capital_question": sample("What is the capital of France?")}
    answer = (await ask(ctx, params, requests))["capital_question"]
    return text(f"The model says: {answer['content']['text']}")


@tool()
async def test_input_required_result_list_roots(ctx: Context, params: Any) -> Any:
    roots = (await ask(ctx, params, {"client_roots": ROOTS}))["client_roots"]["roots"]
    return text(f"Roots: {', '.join(root['uri'] for root in roots)}")


@tool()
async def test_input_required_result_request_state(ctx: Context, params: Any) -> Any:
    request = elicit("Please confirm", ok={"type": "boolean"})
    await ask(ctx, params, {"confirm": request}, sealed(1))
    if ctx.protocol_version == STATELESS:
        assert opened(params.request_state) == 1
    return text("state-ok")


@tool()
async def test_input_required_result_multiple_inputs(ctx: Context, params: Any) -> Any:
    requests = {
        "user_name": elicit("What is your name?", **NAME),
        "greeting": sample("Generate a greeting", 50),
        "client_roots": ROOTS,
    }
    answers = await ask(ctx, params, requests, sealed(1))
    return text(f"All answered: {json.dumps(answers)}")


@tool()
async def test_input_required_result_multi_round(ctx: Context, params: Any) -> Any:
    first = elicit("Step 1: What is your name?", **NAME)
    second = elicit("Step 2: What is your favorite color?", color={"type": "string"})
    if opened(getattr(params, "request_state", None)) < 2:
        await ask(ctx, params, {"step1": first}, sealed(1))
        if ctx.protocol_version == STATELESS:
            raise InputRequired({"step2": second}, sealed(2))
    answer = await ask(ctx, params, {"step2": second}, sealed(2))
    return text(f"Done: {json.dumps(answer)}")


@tool()
async def test_input_required_result_tampered_state(ctx: Context, params: Any) -> Any:
    opened(getattr(params, "request_state", None))
    await ask(ctx, params, {"confirm": elicit("Please confirm", ok={"type": "boolean"})}, sealed(1))
    return text("state-ok")


@tool()
async def test_input_required_result_capabilities(ctx: Context, params: Any) -> Any:
    possible = {
        "question": sample("What is the capital of France?"),
        "user_name": elicit("Name?", **NAME),
        "roots": ROOTS,
    }
    declared = capabilities(ctx)
    requests = {key: request for key, request in possible.items() if FEATURE[request["method"]] in declared}
    return text(json.dumps(await ask(ctx, params, requests)))


@tool()
async def test_missing_capability(ctx: Context, params: Any) -> Any:
    await ask(ctx, params, {"sample": sample("anything")})
    return text("sampled")


@tool()
async def test_streaming_elicitation(ctx: Context, params: Any) -> Any:
    await ask(ctx, params, {"user_name": elicit("What is your name?", **NAME)})
    return text("streamed")


@tool()
async def test_trigger_tool_change(ctx: Context, params: Any) -> Any:
    if ctx.protocol_version != STATELESS:
        await ctx.session.send_tool_list_changed()
    await bus.publish(ToolsListChanged())
    return text("changed")


@tool()
async def test_trigger_prompt_change(ctx: Context, params: Any) -> Any:
    if ctx.protocol_version != STATELESS:
        await ctx.session.send_prompt_list_changed()
    await bus.publish(PromptsListChanged())
    return text("changed")


@tool(**strings("uri"))
async def touch_resource(ctx: Context, params: Any) -> Any:
    if ctx.protocol_version != STATELESS:
        await ctx.session.send_resource_updated(params.arguments["uri"])
    await bus.publish(ResourceUpdated(uri=params.arguments["uri"]))
    return text("touched")


@tool()
async def ask_and_give_up(ctx: Context, params: Any) -> Any:
    with anyio.move_on_after(0.5):
        await ask(ctx, params, {"user_name": elicit("Be quick", **NAME)})
    return text("gave up")


@tool(**strings("marker"))
async def die_once(ctx: Context, params: Any) -> Any:
    """Ends the server in the middle of its first call; the file `marker` counts the calls."""
    marker = Path(params.arguments["marker"])
    with marker.open("a") as calls:
        calls.write("called\n")
    if len(marker.read_text().splitlines()) == 1:
        os._exit(1)
    return text("survived")


TOOLS["die_once_unsafe"] = die_once
SCHEMAS["die_once_unsafe"] = SCHEMAS["die_once"]
ANNOTATIONS = {"die_once": {"readOnlyHint": True}}


@tool()
async def test_reconnection(ctx: Context, params: Any) -> Any:
    if ctx.close_sse_stream is not None:
        await ctx.close_sse_stream()
    await asyncio.sleep(0.3)
    return text("Reconnection test completed successfully")


async def json_schema_2020_12_tool(ctx: Context, params: Any) -> Any:
    return text(json.dumps(params.arguments))


TOOLS["json_schema_2020_12_tool"] = json_schema_2020_12_tool
SCHEMAS["json_schema_2020_12_tool"] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


async def test_x_mcp_header(ctx: Context, params: Any) -> Any:
    return text(json.dumps(params.arguments))


TOOLS["test_x_mcp_header"] = test_x_mcp_header
SCHEMAS["test_x_mcp_header"] = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}, "query": {"type": "string"}},
    "required": ["region"],
}


async def list_tools(_ctx: Context, _params: Any) -> types.ListToolsResult:
    tools = [
        {
            "name": name,
            "description": f"Fixture: {name}",
            "inputSchema": schema,
            **({"annotations": ANNOTATIONS[name]} if name in ANNOTATIONS else {}),
        }
        for name, schema in SCHEMAS.items()
    ]
    return types.ListToolsResult.model_validate({"tools": tools})


async def call_tool(ctx: Context, params: types.CallToolRequestParams) -> Any:
    if params.name not in TOOLS:
        raise MCPError(code=types.INVALID_PARAMS, message=f"unknown tool: {params.name}")
    try:
        return types.CallToolResult.model_validate(await TOOLS[params.name](ctx, params))
    except InputRequired as exc:
        return exc.result


RESOURCES = {
    "test://static-text": {"mimeType": "text/plain", "text": "This is the content of the static text resource."},
    "test://static-binary": {"mimeType": "image/png", "blob": PNG},
    "test://watched-resource": {"mimeType": "text/plain", "text": "Watched."},
    "test://example-resource": {"mimeType": "text/plain", "text": "An example."},
}


async def list_resources(_ctx: Context, _params: Any) -> types.ListResourcesResult:
    resources = [
        {"uri": uri, "name": uri[7:], "description": f"Fixture: {uri}", "mimeType": content["mimeType"]}
        for uri, content in RESOURCES.items()
    ]
    return types.ListResourcesResult.model_validate({"resources": resources})


async def list_templates(_ctx: Context, _params: Any) -> types.ListResourceTemplatesResult:
    template = {
        "uriTemplate": "test://template/{id}/data",
        "name": "template",
        "description": "Data by id",
        "mimeType": "application/json",
    }
    return types.ListResourceTemplatesResult.model_validate({"resourceTemplates": [template]})


async def read_resource(ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    uri = str(params.uri)
    content = RESOURCES.get(uri)
    if content is None and uri.startswith("test://template/") and uri.endswith("/data"):
        number = uri.removeprefix("test://template/").removesuffix("/data")
        data = {"id": number, "templateTest": True, "data": f"Data for ID: {number}"}
        content = {"mimeType": "application/json", "text": json.dumps(data)}
    if content is None:
        code = types.INVALID_PARAMS if ctx.protocol_version == STATELESS else -32002
        raise MCPError(code=code, message="Resource not found", data={"uri": uri})
    return types.ReadResourceResult.model_validate({"contents": [{"uri": uri, **content}]})


async def subscribe(_ctx: Context, _params: Any) -> types.EmptyResult:
    return types.EmptyResult()


def message(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": {"type": "text", "text": content} if isinstance(content, str) else content}


PROMPTS: dict[str, list[str]] = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}


async def list_prompts(_ctx: Context, _params: Any) -> types.ListPromptsResult:
    prompts = [
        {
            "name": name,
            "description": f"Fixture: {name}",
            "arguments": [{"name": argument, "description": argument, "required": True} for argument in arguments],
        }
        for name, arguments in PROMPTS.items()
    ]
    return types.ListPromptsResult.model_validate({"prompts": prompts})


async def get_prompt(ctx: Context, params: types.GetPromptRequestParams) -> Any:
    given = params.arguments or {}
    if params.name == "test_simple_prompt":
        messages = [message("This is a simple prompt for testing.")]
    elif params.name == "test_prompt_with_arguments":
        messages = [message(f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'")]
    elif params.name == "test_prompt_with_embedded_resource":
        resource = {
            "uri": given.get("resourceUri"),
            "mimeType": "text/plain",
            "text": "Embedded resource content for testing.",
        }
        messages = [
            message({"type": "resource", "resource": resource}),
            message("Please process the embedded resource above."),
        ]
    elif params.name == "test_prompt_with_image":
        image = {"type": "image", "data": PNG, "mimeType": "image/png"}
        messages = [message(image), message("Please analyze the image above.")]
    elif params.name == "test_input_required_result_prompt":
        request = elicit("What context should the prompt use?", context={"type": "string"})
        try:
            answer = (await ask(ctx, params, {"user_context": request}))["user_context"]
        except InputRequired as exc:
            return exc.result
        messages = [message(f"Context: {json.dumps(answer.get('content'))}")]
    else:
        raise MCPError(code=types.INVALID_PARAMS, message=f"unknown prompt: {params.name}")
    return types.GetPromptResult.model_validate({"messages": messages})


async def complete(_ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    values = [word for word in ("paris", "park", "party", "test") if word.startswith(params.argument.value)]
    return types.CompleteResult.model_validate(
        {"completion": {"values": values, "total": len(values), "hasMore": False}}
    )


async def set_level(_ctx: Context, _params: Any) -> types.EmptyResult:
    return types.EmptyResult()


class Fixture(Server[Any]):
    """One that says that its lists may change."""

    def get_capabilities(self, *_: Any, **__: Any) -> types.ServerCapabilities:
        changes = NotificationOptions(tools_changed=True, prompts_changed=True, resources_changed=True)
        found = super().get_capabilities(changes, {}, {})
        if found.resources is not None:
            found.resources.subscribe = True
        return found


server = Fixture(
    "fixture",
    version="1.0.0",
    instructions="The conformance suite's fixture.",
    on_list_tools=list_tools,
    on_call_tool=call_tool,
    on_list_resources=list_resources,
    on_list_resource_templates=list_templates,
    on_read_resource=read_resource,
    on_subscribe_resource=subscribe,
    on_unsubscribe_resource=subscribe,
    on_list_prompts=list_prompts,
    on_get_prompt=get_prompt,
    on_completion=complete,
    on_set_logging_level=set_level,
    on_subscriptions_listen=ListenHandler(bus),
)


async def run(read: Any, write: Any, session_only: bool) -> None:
    if not session_only:
        await server.run(read, write, server.create_initialization_options())
        return
    into, filtered = anyio.create_memory_object_stream[Any](0)

    async def refuse_the_stateless_era() -> None:
        async with into:
            async for incoming in read:
                request = incoming.message if isinstance(incoming, SessionMessage) else None
                if isinstance(request, types.JSONRPCRequest) and request.method == "server/discover":
                    error = types.ErrorData(code=types.METHOD_NOT_FOUND, message="Method not found")
                    refusal = types.JSONRPCError(jsonrpc="2.0", id=request.id, error=error)
                    await write.send(SessionMessage(message=refusal))
                    continue
                await into.send(incoming)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(refuse_the_stateless_era)
        await server.run(filtered, write, server.create_initialization_options())
        tasks.cancel_scope.cancel()


async def serve_stdio(session_only: bool) -> None:
    async with stdio_server() as (read, write):
        await run(read, write, session_only)


async def dial(url: str, server_id: str, session_only: bool) -> None:
    async with connect(url, subprotocols=["mcp"], compression=None) as socket:  # type: ignore[list-item]
        register = {"jsonrpc": "2.0", "id": 1, "method": "toolscore/register", "params": {"server_id": server_id}}
        await socket.send(json.dumps(register))
        await socket.recv()
        into_server, read = anyio.create_memory_object_stream[Any](0)
        write, from_server = anyio.create_memory_object_stream[Any](0)

        async def receive() -> None:
            async for frame in socket:
                await into_server.send(SessionMessage(message=types.jsonrpc_message_adapter.validate_json(frame)))

        async def send() -> None:
            async for outgoing in from_server:
                await socket.send(outgoing.message.model_dump_json(by_alias=True, exclude_none=True))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            tasks.start_soon(send)
            await run(read, write, session_only)


class Events(EventStore):
    """What was sent, for clients that come back."""

    def __init__(self) -> None:
        self._sent: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self._sent.append((stream_id, message))
        return str(len(self._sent))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        position = int(last_event_id)
        stream_id = self._sent[position - 1][0]
        for number, (stream, sent) in enumerate(self._sent[position:], position + 1):
            if stream == stream_id and sent is not None:
                await send_callback(EventMessage(sent, str(number)))
        return stream_id


def serve_http(port: int, session_only: bool) -> None:
    app = server.streamable_http_app(event_store=Events(), retry_interval=200)

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", []))
        if session_only and headers.get(b"mcp-protocol-version") == STATELESS.encode():
            await send({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Bad Request: Unsupported protocol version"})
            return
        await app(scope, receive, send)

    uvicorn.run(guard, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    only = "--session-only" in sys.argv
    way, *rest = [argument for argument in sys.argv[1:] if argument != "--session-only"]
    if way == "stdio":
        anyio.run(serve_stdio, only)
    elif way == "http":
        serve_http(int(rest[0]), only)
    else:
        anyio.run(dial, rest[0], rest[1], only)
