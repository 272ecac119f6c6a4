"""What `/docs` says of requests and answers that FastAPI does not see: bodies, answers, who may call."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI

from toolscore.app.executor import EXECUTOR_ID
from toolscore.endpoints.rest.shapes import ANSWERS, BODIES

__all__ = ["EXECUTE_OPENAPI", "FAILURE_OPENAPI", "describe"]

SCHEMES = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "a key of `toolscore keys create`"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "such a key, or a token of an authorization server"},
}
OPEN_TO_ALL = frozenset({"/livez", "/readyz"})
ENVELOPE: dict[str, Any] = {
    "type": "object",
    "required": ["success", "data", "message", "timestamp", "request_id", "performance"],
    "properties": {
        "success": {"const": True},
        "message": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "request_id": {"type": "string"},
        "performance": {
            "type": "object",
            "required": ["duration_ms", "cache_hit"],
            "properties": {
                "duration_ms": {"type": "number"},
                "cache_hit": {"type": "boolean"},
                "cache_level": {"enum": ["l1", "l2", "l3"]},
                "age_seconds": {"type": "number"},
                "stale": {"type": "boolean"},
            },
        },
    },
}


def describe(app: FastAPI) -> None:
    """Have the application's OpenAPI document say, field by field, what each address takes and answers."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            kinds = [kind if isinstance(kind, tuple) else (kind,) for kind in ANSWERS.values()]
            described, parts = msgspec.json.schema_components(
                [one for kind in kinds for one in kind], ref_template=REFERENCE
            )
            schemas = iter(described)
            answers = [next(schemas) if len(kind) == 1 else {"anyOf": [next(schemas) for _ in kind]} for kind in kinds]
            bodies, more = msgspec.json.schema_components(list(BODIES.values()), ref_template=REFERENCE)
            document["components"] = {"schemas": {**parts, **more}, "securitySchemes": SCHEMES}
            for (method, path), schema in zip(ANSWERS, answers, strict=True):
                operation = _operation(document, path, method)
                status = next((code for code in operation["responses"] if code.startswith("2")), "200")
                content = (
                    operation["responses"].setdefault(status, {"description": "the answer"}).setdefault("content", {})
                )
                content.setdefault("application/json", {})["schema"] = {
                    **ENVELOPE, "properties": {**ENVELOPE["properties"], "data": schema}
                }  # fmt: skip
            for (method, path), schema in zip(BODIES, bodies, strict=True):
                content = _operation(document, path, method)["requestBody"]["content"]["application/json"]
                examples = content.get("schema", {}).get("examples")
                content["schema"] = {**schema, **({"examples": examples} if examples else {})}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)  # FastAPI's own; ours is among 4XX
                    operation["security"] = [] if path in OPEN_TO_ALL else [{"key": []}, {"bearer": []}, {}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operation(document: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = document["paths"][path][method]
    return found


REFERENCE = "#/components/schemas/{name}"


FAILURE_OPENAPI: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "what is wrong with the request, in the envelope of every answer",
        "content": {
            "application/json": {
                "example": {
                    "success": False,
                    "data": None,
                    "message": "no tool 'time__now'",
                    "timestamp": "2026-11-21T10:00:00.000Z",
                    "request_id": "8c7a…",
                    "performance": {"duration_ms": 0.2, "cache_hit": False},
                    "error": {
                        "code": "tool_not_found",
                        "message": "no tool 'time__now'",
                        "retryable": False,
                        "retry_after_seconds": None,
                        "suggestion": "nearest: time__get_current_time",
                    },
                }
            }
        },
    }
}

EXECUTE_OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "examples": {
                    "python": {
                        "value": {
                            "tool_id": f"{EXECUTOR_ID}__python_execute",
                            "parameters": {"code": "print(sum(range(10)))"},
                        }
                    },
                    "by server": {
                        "value": {
                            "tool_id": "time",
                            "action": "get_current_time",
                            "parameters": {"timezone": "Asia/Tokyo"},
                        }
                    },
                },
            }
        },
    },
    "responses": {
        "200": {
            "description": "the tool's result; `data.is_error` says whether the tool itself failed",
            "content": {
                "application/json": {
                    "example": {
                        "success": True,
                        "data": {
                            "call_id": "8c7a…",
                            "tool_id": f"{EXECUTOR_ID}__python_execute",
                            "content": [{"type": "text", "text": "45\n"}],
                            "structured_content": None,
                            "is_error": False,
                        },
                        "message": "",
                        "timestamp": "2026-11-21T10:00:00.000Z",
                        "request_id": "8c7a…",
                        "performance": {"duration_ms": 0.9, "cache_hit": False},
                    }
                }
            },
        }
    },
}
