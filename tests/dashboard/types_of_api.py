"""Makes the page's types of the API that a gateway describes: `make types`. A test compares them with what is kept."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from support import ROOT, SERVERS, running_gateway

PAGE = ROOT / "toolscore" / "dashboard"
KEPT = PAGE / "src" / "api" / "schema.d.ts"


def types_of(document: dict[str, Any]) -> str:
    """What openapi-typescript makes of an OpenAPI document."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "openapi.json", Path(folder) / "schema.d.ts"
        source.write_text(json.dumps(document))
        program = PAGE / "node_modules" / "openapi-typescript" / "bin" / "cli.js"
        options = ("--empty-objects-unknown", "--default-non-nullable=false")
        subprocess.run(
            [str(SERVERS / "node"), str(program), str(source), *options, "-o", str(made)],
            check=True,
            capture_output=True,
        )
        return made.read_text()


def main() -> None:
    with running_gateway() as process:
        KEPT.write_text(types_of(process.http.get("/openapi.json").json()))


if __name__ == "__main__":
    main()
