"""What `/docs` says of requests and answers that FastAPI does not see."""

from __future__ import annotations

from typing import Any

from toolscore.app.executor import EXECUTOR_ID

__all__ = ["EXECUTE_OPENAPI", "FAILURE_OPENAPI"]


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
                "schema": {
                    "type": "object",
                    "required": ["tool_id"],
                    "additionalProperties": False,
                    "properties": {
                        "tool_id": {"type": "string", "description": "a full name, or a server id with `action`"},
                        "action": {"type": "string", "description": "the tool's own name on that server"},
                        "parameters": {"type": "object", "description": "the tool's arguments"},
                        "timeout_seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": 3600},
                        "cache": {"type": "boolean", "default": True, "description": "false: ask the server itself"},
                        "session_id": {"type": "string", "description": "passed to the tool as its `session_id`"},
                    },
                },
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
