"""Keys that are brought from outside, such as a Secret's."""

from __future__ import annotations

import pytest
from support import bearer, running_gateway

LONG, SHORT = "k" * 40, "k" * 31
SETTINGS = (
    "access:\n  local_without_key: false\n  given_keys:\n"
    "    boss: {key: '${env:GIVEN_BOSS}', scopes: [admin]}\n"
    f"    plain: {{key: '{'p' * 32}'}}\n"
    "    short: {key: '${env:GIVEN_SHORT}', scopes: [admin]}\n"
    "    absent: {key: '${env:GIVEN_NOWHERE}', scopes: [admin]}\n"
)


@pytest.mark.long
def test_a_key_of_the_settings_counts_and_one_that_can_be_guessed_does_not() -> None:
    with running_gateway({}, settings=SETTINGS, start=False) as process:
        process.environment = {"GIVEN_BOSS": LONG, "GIVEN_SHORT": SHORT}
        process.start()

        def who(key: str) -> dict[str, object]:
            return dict(process.http.get("/api/v1/whoami", headers=bearer(key)).json())

        assert process.http.get("/api/v1/whoami").status_code == 401
        assert who(LONG)["data"]["principal"] == "boss"  # type: ignore[index]
        assert "admin" in who(LONG)["data"]["scopes"]  # type: ignore[index]
        assert who("p" * 32)["data"]["scopes"] == []  # type: ignore[index]
        for wrong in (SHORT, "k" * 39, "${env:GIVEN_NOWHERE}", "${env:GIVEN_BOSS}"):
            assert process.http.get("/api/v1/whoami", headers=bearer(wrong)).status_code == 401
        process.wait_for_output("too short")
        assert LONG not in process.output()
        assert SHORT not in process.output()
        made = process.http.post("/api/v1/keys", json={"name": "ada"}, headers=bearer(LONG)).json()["data"]["key"]
        assert who(made)["data"]["principal"] == "ada"  # type: ignore[index]
