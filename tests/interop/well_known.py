"""The well-known servers that come with the catalog: does each install, as far as one comes without an account?

`make well-known` installs each from the registries as a user would, with accounts that do not exist, so it is no part
of `make test`. It prints a table, and fails if a server neither installs nor says in one line what it needs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from support import running_gateway

ELSEWHERE = "runs elsewhere or in a container"
ENOUGH = 18
GIVEN = {
    "postgres": ["--arg", "connection-string=${env:A_URL}"],
    "redis": ["--env", "REDIS_HOST=127.0.0.1"],
    "jira": ["--env", "JIRA_URL=https://nobody.example.com", "--env", "JIRA_USERNAME=nobody@example.com"],
    "slack": ["--env", "SLACK_TEAM_ID=T01234567"],
    "playwright": ["--arg", "executable-path=/usr/bin/chromium"],
    "puppeteer": ["--env", "PUPPETEER_EXECUTABLE_PATH=/usr/bin/chromium"],
}
ENVIRONMENT = {
    "A_URL": "postgresql://nobody:nothing@127.0.0.1:1/none",
    "A_MONGO": "mongodb://127.0.0.1:1/none",
    "A_TOKEN": "no-token-of-anybody",
    "A_STRIPE": "rk_test_of_nobody",
}


def options(known: dict[str, Any], folder: str) -> list[str]:
    """What a user gives: secrets by reference, a folder where one is needed, the network where it is wanted."""
    name = known["known_as"][0]
    given = list(GIVEN.get(name, ()))
    for package in known["packages"][:1]:
        for variable in package.get("environmentVariables") or ():
            if variable.get("isRequired") and not any(one.startswith(f"{variable['name']}=") for one in given):
                source = {"MDB_MCP_CONNECTION_STRING": "A_MONGO", "STRIPE_SECRET_KEY": "A_STRIPE"}.get(
                    variable["name"], "A_TOKEN"
                )
                given += ["--env", f"{variable['name']}=${{env:{source}}}"]
        if any(
            one.get("format") == "filepath" and one.get("isRequired") for one in package.get("packageArguments", ())
        ):
            given += ["--folder", folder]
    return given


def install(name: str, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolscore", "install", name, "--url", url, "--yes", *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    known = json.loads((files("toolscore.discovery") / "data" / "well_known.json").read_bytes())
    chosen = [one for one in known if not sys.argv[1:] or one["known_as"][0] in sys.argv[1:]]
    bad, installed, shown = [], 0, []
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder, running_gateway(start=False) as gateway:
        subprocess.run(["git", "init", "--quiet", folder], check=True)
        subprocess.run(["chmod", "-R", "a+rwX", folder], check=True)
        gateway.environment = ENVIRONMENT
        gateway.start()
        for one in chosen:
            name = one["known_as"][0]
            print(f"{name} …", file=sys.stderr, flush=True)
            bare = said = install(name, gateway.url)
            outcome = "installed as it is"
            if not one["packages"] or one["packages"][0]["registryType"] == "oci":
                outcome = ELSEWHERE if "it needs" in bare.stderr else "FAILED"
            elif bare.returncode != 0:
                said = install(name, gateway.url, "--network", *options(one, folder))
                outcome = "installed" if said.returncode == 0 else "FAILED"
            text = said.stdout + said.stderr
            needs = re.findall(r"it needs ([^:\n]+)", bare.stderr)
            tried = next((line.strip() for line in text.splitlines() if line.strip().startswith("tried ")), "")
            shown.append((name, outcome, ", ".join(needs), tried))
            installed += outcome != "FAILED"
            if outcome == "FAILED":
                bad.append(f"{name}: {text[-600:]}")
    for row in shown:
        print(f"{row[0]:<14}{row[1]:<34}{row[2][:40]:<42}{row[3][:120]}")
    print(f"\n{installed} of {len(shown)} come as far as an account allows")
    print("\n".join(bad))
    return int(not sys.argv[1:] and installed < ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
