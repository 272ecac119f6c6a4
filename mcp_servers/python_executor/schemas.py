"""The JSON schemas of what the executor's tools take and give."""

from __future__ import annotations

__all__ = ["FILE_SCHEMA", "OUTPUT_SCHEMA", "PNG", "SESSIONS_SCHEMA"]

PNG = "image/png"

FILE_SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "description": "relative to the working folder"},
        "content": {"type": "string"},
        "encoding": {"enum": ["utf-8", "base64"], "default": "utf-8"},
    },
    "required": ["path", "content"],
    "additionalProperties": False,
}

OUTPUT_SCHEMA = {
    "type": "object",
    "properties": {
        "stdout": {"type": "string"},
        "stderr": {"type": "string"},
        "result": {"type": ["string", "null"], "description": "repr of the value of a last expression"},
        "error": {
            "type": ["object", "null"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "traceback": {"type": "string", "description": "with the code's own lines"},
            },
            "required": ["type", "message", "traceback"],
        },
        "images": {
            "type": "array",
            "description": "of each picture, which is an image block of the content, in this order",
            "items": {
                "type": "object",
                "properties": {"media_type": {"type": "string"}, "size": {"type": "integer"}},
                "required": ["media_type", "size"],
            },
        },
        "files": {
            "type": "array",
            "description": "what was written below the working folder; a file too large to come along has no content",
            "items": {
                "type": "object",
                "properties": {
                    "path": {"type": "string"},
                    "size": {"type": "integer"},
                    "content": {"type": "string"},
                    "encoding": {"enum": ["utf-8", "base64"]},
                },
                "required": ["path", "size"],
            },
        },
        "duration_ms": {"type": "number"},
        "exit": {"enum": ["ok", "error", "timeout", "memory", "killed", "output_limit"]},
        "limits_hit": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["stdout", "stderr", "result", "error", "images", "files", "duration_ms", "exit", "limits_hit"],
}

SESSIONS_SCHEMA = {
    "type": "object",
    "properties": {
        "sessions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "session_id": {"type": "string"},
                    "state": {"enum": ["running", "idle"]},
                    "opened": {"type": "number", "description": "Unix seconds"},
                    "idle_seconds": {"type": "number"},
                    "ends_in_seconds": {"type": ["number", "null"], "description": "if nobody uses it; null: it runs"},
                    "packages": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["session_id", "state", "opened", "idle_seconds", "ends_in_seconds", "packages"],
            },
        }
    },
    "required": ["sessions"],
}
