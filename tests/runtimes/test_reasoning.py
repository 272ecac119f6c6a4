"""The reasoning runtime before a real gateway, with a double of a model: good, clumsy, broken, hostile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Fickle, GatewayProcess, Turn, model_double, running_gateway, wait_for

from runtimes.reasoning import Bounds, ChatModel, EnhancedReasoningRuntime, Event, ModelRules
from runtimes.reasoning.prompt import FormError, read_answer, references
from runtimes.reasoning.rules import NoKey
from runtimes.reasoning.trajectory import as_chat, read_trajectory, redacted

TASK = "Look the city of Oslo up."
LOOK = "I look.\n```python\nprint(tools.city.look(city='Oslo'))\n```"
DONE = "FINAL: done"


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Fickle:
    return Fickle(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def gateway(city: Fickle) -> Iterator[GatewayProcess]:
    with running_gateway({"city": city.entry}, journal=True, python=True) as process:
        process.wait_for_state("city", "up")
        yield process


def ran(
    gateway: GatewayProcess, turns: Any, *, bounds: Bounds | None = None, rules: dict[str, Any] | None = None,
    path: Path | None = None, url: str | None = None, **options: Any,
) -> tuple[list[Event], list[dict[str, Any]]]:  # fmt: skip
    """The events of a run, and what the model was asked."""
    with model_double({TASK: turns} if isinstance(turns, list) else turns) as double:
        given = {"name": "double", "url": double.url, "tries": 3, "timeout_seconds": 5.0, **(rules or {})}

        async def run() -> list[Event]:
            async with (
                ChatModel(ModelRules(**given)) as model,
                EnhancedReasoningRuntime(
                    model, url=url or gateway.url, bounds=bounds, install=False, **options
                ) as runtime,
            ):  # fmt: skip
                return [event async for event in runtime.run(TASK, trajectory=path)]

        return asyncio.run(run()), double.requests


def told(events: list[Event], kind: str) -> list[Any]:
    return [event for event in events if event.type == kind]


def ending(events: list[Event]) -> tuple[str, str]:
    last: Any = events[-1]
    return last.reason, last.message


# Good


@pytest.mark.long
def test_a_task_is_planned_done_and_told(gateway: GatewayProcess, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    events, requests = ran(gateway, [LOOK, DONE], path=path, rules={"input_price": 3.0, "output_price": 6.0})
    assert [event.type for event in events if event.type not in ("thinking", "output")] == [
        "started", "planned", "tools_offered", "code_written", "code_run", "answered", "ended",
    ]  # fmt: skip
    assert told(events, "tools_offered")[0].names
    step = told(events, "code_run")[0]
    assert (step.ok, step.calls) == (True, 1)
    assert "Oslo #" in step.text
    assert "".join(event.text for event in told(events, "thinking")) == LOOK + DONE, "as it streams"
    assert any("Oslo" in event.text for event in told(events, "output"))
    last: Any = events[-1]
    assert (last.reason, last.steps, last.calls) == ("answered", 1, 1)
    assert last.money == pytest.approx((last.tokens_read * 3 + last.tokens_written * 6) / 1e6)
    assert "def look(" in requests[0]["messages"][1]["content"], "the tools are shown as Python"
    assert requests[1]["messages"][-1]["content"].startswith("It ran.\nOslo #")
    kept = read_trajectory(path)
    assert [one["role"] for one in kept.messages] == ["system", "user", "assistant", "user", "assistant"]
    call = gateway.get(f"/api/v1/calls/{step.call_id}")
    assert [inner["tool_id"] for inner in call["calls"]] == ["city__look"]


@pytest.mark.long
def test_a_changing_tool_is_asked_for(gateway: GatewayProcess, city: Fickle) -> None:
    write = "```python\ntools.city.write(city='Bergen')\n```"
    asked: list[tuple[str, ...]] = []

    async def yes(code: str, tools: tuple[str, ...]) -> bool:
        asked.append(tools)
        return True

    before = len(city.calls())
    events, requests = ran(gateway, [write, "CANNOT: I may not"])
    assert ending(events) == ("cannot", "I may not")
    assert "does not let you call city__write" in requests[1]["messages"][-1]["content"]
    assert len(city.calls()) == before, "nobody allowed it"
    hidden = "```python\nt = tools\nt.city.write(city='Bergen')\n```"
    events, _ = ran(gateway, [hidden, "CANNOT: no"])
    assert "forbidden" in told(events, "code_run")[0].text
    assert len(city.calls()) == before, "nor where it is not seen in the code"
    events, _ = ran(gateway, [write, write + "\n", DONE], approve=yes)
    assert asked == [("city__write",)], "once"
    assert told(events, "code_written")[0].changing == ("city__write",)
    events, _ = ran(gateway, [write, DONE], allow=["city__*"])
    assert told(events, "code_run")[0].ok
    assert len(city.calls()) == before + 3


@pytest.mark.long
def test_tools_that_come_meanwhile_are_offered(gateway: GatewayProcess, tmp_path: Path) -> None:
    other = Fickle(tmp_path / "other")

    def script(task: str, messages: list[dict[str, str]], count: int) -> str:
        if count == 0:
            gateway.http.post("/api/v1/servers", json={"server_id": "late", **other.entry})
            return LOOK
        if "class late:" not in "".join(one["content"] for one in messages):  # the event is on its way
            return LOOK.replace("Oslo", f"Oslo{count}")
        return DONE if "Rome" in messages[-2]["content"] else "```python\nprint(tools.late.look(city='Rome'))\n```"

    try:
        events, _ = ran(gateway, script, bounds=Bounds(steps=500))
    finally:
        gateway.http.delete("/api/v1/servers/late")
    assert [event.arrived for event in told(events, "tools_offered")] == [False, True]
    assert told(events, "code_run")[-1].text.startswith("Rome #")
    assert ending(events) == ("answered", "done")


# Clumsy


@pytest.mark.parametrize(
    ("first", "mended"),
    [
        ("Well, let me think about it.", "neither code nor an end"),
        (f"{LOOK}\nand then\n{LOOK}", "more than one block"),
        ("```python\n\n```", "is empty"),
        (Turn("```python\nprint('it goes on", finish="length"), "cut off"),
        (Turn("", finish="tool_calls"), "called a tool by the API"),
        ("FINAL:", "followed by nothing"),
    ],
)
@pytest.mark.long
def test_an_answer_without_the_form_is_mended_by_asking_once(
    gateway: GatewayProcess, first: Turn | str, mended: str
) -> None:
    events, requests = ran(gateway, [first, LOOK, DONE])
    assert mended in requests[1]["messages"][-1]["content"]
    assert ending(events) == ("answered", "done")
    events, requests = ran(gateway, [first, first, DONE])
    assert ending(events)[0] == "model_form"
    assert len(requests) == 2


def test_code_that_fails_comes_back_with_its_error_and_is_not_run_twice(gateway: GatewayProcess, city: Fickle) -> None:
    wrong = "```python\nprint(tools.city.look(town='Oslo'))\nprint(tools.city.look(city=5))\n```"
    before = len(city.calls())
    events, requests = ran(gateway, [wrong, wrong.replace("\n```", "   \n\n```"), LOOK, DONE])
    assert [event.ok for event in told(events, "code_run")] == [False, True]
    assert "invalid_arguments" in requests[1]["messages"][-1]["content"]
    assert "failed before" in requests[2]["messages"][-1]["content"]
    assert ending(events) == ("answered", "done")
    assert len(city.calls()) == before + 2


# Broken


@pytest.mark.parametrize(
    "trouble",
    [
        Turn(status=500, error="it broke"),
        Turn(status=429, error="slow down", headers={"retry-after": "0.1"}),
        Turn(LOOK, dies=True),
        Turn(lines=("data: {\"choices\": \"nonsense\"}\n\n",)),
        Turn(lines=("data: [DONE]\n\n",)),
        Turn(status=503, error="overloaded"),
    ],
    ids=lambda turn: turn.error if turn.status != 200 else str(turn.lines or "dies"),
)  # fmt: skip
@pytest.mark.long
def test_where_another_try_may_help_there_is_one(gateway: GatewayProcess, trouble: Turn) -> None:
    events, _ = ran(gateway, [trouble, LOOK, DONE])
    assert ending(events) == ("answered", "done"), events
    waited = told(events, "waiting")
    assert waited or trouble.dies, "and it says that it waits"


@pytest.mark.long
def test_options_that_an_endpoint_does_not_know_are_left_out(gateway: GatewayProcess) -> None:
    picky = [
        Turn(status=400, error="Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        Turn(status=400, error="Unknown field: stream_options"),
        Turn(LOOK, usage=False),
        DONE,
    ]
    events, requests = ran(gateway, picky, rules={"seed": 7, "temperature": 0.5})
    assert ending(events) == ("answered", "done")
    assert requests[0]["max_tokens"] == requests[-1]["max_completion_tokens"] == 4096
    assert "stream_options" not in requests[-1]
    assert (requests[-1]["seed"], requests[-1]["temperature"]) == (7, 0.5)
    last: Any = events[-1]
    assert last.tokens_read > 100, "estimated where nobody counts"
    refused, _ = ran(gateway, [Turn(status=400, error="temperature is not supported")], rules={"temperature": 0.5})
    assert ending(refused)[0] == "model", "what was asked for is not left out"


@pytest.mark.long
def test_what_cannot_be_mended_ends_the_run_and_says_why(gateway: GatewayProcess) -> None:
    started = time.monotonic()
    events, requests = ran(gateway, [Turn(status=401, error="the key is wrong")])
    assert ending(events)[0] == "model"
    assert "refuses (HTTP 401): " in ending(events)[1]
    assert len(requests) == 1, "no other try"
    events, _ = ran(gateway, [LOOK], rules={"url": "http://127.0.0.1:9/v1", "tries": 1})
    assert "cannot be reached" in ending(events)[1]
    events, _ = ran(gateway, [Turn(LOOK, wait=3)], rules={"timeout_seconds": 0.3, "tries": 1})
    assert "no answer within 0.3 s" in ending(events)[1]
    assert time.monotonic() - started < 60
    with pytest.raises(NoKey, match="OPENAI_API_KEY"):
        ChatModel(ModelRules(name="x"))
    with pytest.raises(NoKey, match="as a reference"):
        ChatModel(ModelRules(name="x", key="sk-plain"))


@pytest.mark.long
def test_bounds_end_a_run_each_by_its_name(gateway: GatewayProcess) -> None:
    def look(task: str, messages: list[dict[str, str]], count: int) -> Turn | str:
        return LOOK.replace("Oslo", f"Oslo{count}")

    assert ending(ran(gateway, look, bounds=Bounds(steps=3))[0])[0] == "steps"
    assert ending(ran(gateway, look, bounds=Bounds(tokens=1500))[0])[0] == "tokens"
    dear = {"input_price": 1e6, "output_price": 1e6}
    assert ending(ran(gateway, look, bounds=Bounds(money=1000.0), rules=dear)[0])[0] == "money"
    slow = [Turn(LOOK, wait=1.0)] * 9
    assert ending(ran(gateway, slow, bounds=Bounds(seconds=1.5))[0])[0] == "seconds"


@pytest.mark.long
def test_a_context_that_is_too_long_is_summed_up(gateway: GatewayProcess) -> None:
    def long(task: str, messages: list[dict[str, str]], count: int) -> Turn | str:
        if sum(len(one["content"]) for one in messages) > 16_000:
            return Turn(status=400, error="This model's maximum context length is 4096 tokens")
        return f"```python\nprint('{count} ' * 900)\n```" if count < 12 else DONE

    events, requests = ran(gateway, long, bounds=Bounds(steps=20))
    assert told(events, "summed")
    assert "Earlier steps, summed up" in requests[-1]["messages"][1]["content"]
    assert ending(events) == ("answered", "done")


@pytest.mark.long
def test_a_gateway_that_is_restarted_in_the_middle_is_waited_for(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "city")
    with running_gateway({"city": fickle.entry}, journal=True, python=True) as process:
        process.wait_for_state("city", "up")

        def script(task: str, messages: list[dict[str, str]], count: int) -> str:
            if count == 1:
                process.stop()
                process.start()
                process.wait_for_state("city", "up")
            return [LOOK, LOOK.replace("Oslo", "Rome"), DONE][count]

        events, _ = ran(process, script, rules={"timeout_seconds": 120.0})  # so long the model restarts it
        assert ending(events) == ("answered", "done"), events
        assert [call["arguments"] for call in fickle.calls()] == [{"city": "Oslo"}, {"city": "Rome"}], events


class Proxy:
    """A proxy that can leave its clients, and keep what it has open to the gateway."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._clients: list[socket.socket] = []
        self._behind: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                behind = socket.create_connection(("127.0.0.1", self._port))
                self._clients.append(client)
                self._behind.append(behind)
                for one, other in ((client, behind), (behind, client)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)

    def cut(self) -> None:
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._clients.clear()

    def close(self) -> None:
        self._listener.close()
        for one in (*self._clients, *self._behind):
            one.close()


@pytest.mark.long
def test_code_that_still_runs_is_not_run_again(gateway: GatewayProcess, city: Fickle) -> None:
    late = "```python\nimport time\ntools.city.look(city='begun')\ntime.sleep(8)\ntools.city.write(city='LATE')\n```"

    def calls(name: str) -> int:
        return sum(call["arguments"].get("city") == name for call in city.calls())

    proxy = Proxy(gateway.http_port)

    def cut() -> None:
        wait_for(lambda: calls("begun"), 60)
        proxy.cut()

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        events, _ = ran(gateway, [late, DONE], url=proxy.url, allow=["*"])
    finally:
        proxy.close()
    cutting.join()
    assert (calls("begun"), calls("LATE")) == (1, 1), events
    assert ending(events) == ("answered", "done")
    assert told(events, "code_run")[0].ok, "its result is what came of it"


@pytest.mark.long
def test_a_step_that_was_not_run_takes_no_others_result(gateway: GatewayProcess, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    refused = "```python\ntools.city.write(city='no')\n```"
    turns = [LOOK, refused, LOOK.replace("Oslo", "BBB"), Turn(status=401, error="gone")]
    events, _ = ran(gateway, turns, path=path)
    assert ending(events)[0] == "model"
    past = read_trajectory(path)
    with model_double({TASK: [LOOK.replace("Oslo", "CCC"), DONE]}) as double:

        async def resumed() -> list[Event]:
            async with (
                ChatModel(ModelRules(name="double", url=double.url)) as model,
                EnhancedReasoningRuntime(model, url=gateway.url, install=False) as runtime,
            ):
                return [event async for event in runtime.run("", trajectory=path, resume=past)]

        events = asyncio.run(resumed())
    assert told(events, "code_run")[0].text.startswith("CCC #")
    ids = [json.loads(line)["request_id"] for line in path.read_text().splitlines() if '"code_written"' in line]
    assert len(ids) == len(set(ids)) == 3


# Hostile


def test_a_hostile_model_gets_no_further_than_its_tools(gateway: GatewayProcess, city: Fickle) -> None:
    before = len(city.calls())
    attempts = [
        "```python\nimport socket; socket.create_connection(('127.0.0.1', 80), 1)\n```",
        "```python\nimport os; print(open('/etc/shadow').read())\n```",
        "```python\ntools['city__write'](city='x')\n```",
        "```python\ngetattr(getattr(tools, 'city'), 'write')(city='x')\n```",
        "```python\ntools.toolscore.run_code(code='1', tools=['*'])\n```",
        "```python\n" + "print('x' * 2_000_000)\n```",
        "FINAL: \x1b[2Jdone",
    ]
    events, requests = ran(gateway, attempts)
    assert len(city.calls()) == before
    assert all(not event.ok for event in told(events, "code_run"))
    assert max(len(one["messages"][-1]["content"]) for one in requests) < 40_000, "a flood of output does not reach it"
    assert ending(events)[0] == "answered"


# A run as a file


def command(gateway: GatewayProcess, url: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "runtimes.reasoning", "do", *arguments, "--model", "double", "--endpoint", url,
            "--gateway", gateway.url, "--no-install"]  # fmt: skip


def clean() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("TOOLSCORE_", "OPENAI_"))}


@pytest.mark.parametrize("moment", ["while the code runs", "while the model answers"])
@pytest.mark.long
def test_a_run_that_was_killed_goes_on_without_repeating_a_call(
    gateway: GatewayProcess, city: Fickle, tmp_path: Path, moment: str
) -> None:
    path = tmp_path / "run.jsonl"
    busy = moment == "while the code runs"
    write = (
        f"```python\nimport time\nkept = tools.city.write(city='{tmp_path.name}')\ntime.sleep({8 if busy else 0})\n```"
    )

    def script(task: str, messages: list[dict[str, str]], count: int) -> Turn | str:
        if "made" in messages[-1]["content"] or messages[-1]["content"].startswith(("It ran", "It failed")):
            return Turn(DONE, wait=0 if count > 1 else 8)
        return write

    def written() -> list[dict[str, Any]]:
        return [call for call in city.calls() if call["arguments"].get("city") == tmp_path.name]

    with model_double(script) as double:
        first = subprocess.Popen(
            command(gateway, double.url, TASK, "--save", str(path), "--yes"), env=clean(), stderr=subprocess.PIPE
        )
        wait_for(written, 60)
        if not busy:
            wait_for(lambda: '"code_run"' in path.read_text(), 60)
        first.kill()
        first.wait()
        assert first.stderr is not None
        first.stderr.close()
        again = subprocess.run(
            command(gateway, double.url, "--resume", str(path), "--yes", "--json"), env=clean(), capture_output=True,
            text=True, timeout=180, check=False,
        )  # fmt: skip
    assert again.returncode == 0, again.stderr + again.stdout
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert events[0]["resumed"] == (0 if busy else 1)
    assert events[-1]["reason"] == "answered"
    assert len(written()) == 1, "the call that happened is not made again"
    if busy:
        step = next(event for event in events if event["type"] == "code_run")
        assert "city__write: ok" in step["text"], "the model is told what had happened"


def test_a_step_that_a_kill_kept_from_the_model_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    began = {"type": "started", "run_id": "r", "task": "t", "model": "m", "endpoint": "e", "key": ""}
    step = {"type": "code_run", "step": 1, "ok": True, "text": "Oslo #1"}
    said = {"type": "message", "role": "assistant", "content": "DONE"}
    told = {"role": "user", "content": "It ran.\nOslo #1"}
    path.write_text("".join(json.dumps(line) + "\n" for line in (began, step)))
    assert read_trajectory(path).messages == [told]
    path.write_text("".join(json.dumps(line) + "\n" for line in (began, step, said)))
    assert [one["content"] for one in read_trajectory(path).messages] == [told["content"], "DONE"], "in its place"
    path.write_text("".join(json.dumps(line) + "\n" for line in (began, step, {"type": "message", **told}, said)))
    assert len(read_trajectory(path).messages) == 2, "once"
    came = {"type": "message", "role": "user", "content": "Tools that have just come: b"}
    path.write_text("".join(json.dumps(line) + "\n" for line in (began, step, came)))
    assert [one["content"] for one in read_trajectory(path).messages] == [told["content"], came["content"]]


@pytest.mark.long
def test_ctrl_c_ends_the_code_and_says_how_to_go_on(gateway: GatewayProcess, city: Fickle, tmp_path: Path) -> None:
    city.order(sleep=300)
    try:
        with model_double({TASK: [LOOK, DONE]}) as double:
            process = subprocess.Popen(
                command(gateway, double.url, TASK, "--save", str(tmp_path / "run.jsonl")), env=clean(),
                stderr=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
            wait_for(lambda: gateway.server("city")["calls_in_flight"] == 1, 60)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "--resume" in err
        wait_for(lambda: gateway.server("city")["calls_in_flight"] == 0, 60, "for the call to be cancelled")
    finally:
        city.order()


@pytest.mark.long
def test_the_command_shows_what_happens(gateway: GatewayProcess, tmp_path: Path) -> None:
    def reason(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runtimes.reasoning", *arguments], env=clean(), capture_output=True, text=True,
            timeout=180, check=False,
        )  # fmt: skip

    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    with model_double({TASK: [LOOK, "FINAL: It is there.", LOOK, "FINAL: It is there."]}) as double:
        options = ("--model", "double", "--endpoint", double.url, "--gateway", gateway.url, "--no-install")
        done = reason(TASK, *options, "--save", str(one))
        assert done.returncode == 0, done.stderr
        assert done.stdout == "It is there.\n", "the answer alone"
        for part in ("step 1", "tools.city.look", "city.look: call 1", "Oslo #", "1 steps, 1 calls of tools"):
            assert part in done.stderr, part
        assert reason("do", TASK, *options, "--save", str(other)).returncode == 0
        assert reason("--resume", str(one), *options).returncode == 2, "it has ended"
    with model_double({TASK: ["CANNOT: no such city"]}) as double:
        options = ("--model", "double", "--endpoint", double.url, "--gateway", gateway.url, "--no-install")
        assert reason(TASK, *options, "--save", str(tmp_path / "no.jsonl")).returncode == 4
    gone = reason(TASK, "--model", "double", "--endpoint", "http://127.0.0.1:9", "--gateway", "http://127.0.0.1:9")
    assert gone.returncode == 3
    assert reason(TASK).returncode == 2, "no model is named"
    for wrong in ("notaurl", "ftp://x/v1"):
        assert "an endpoint is at an address" in reason(TASK, "--model", "x", "--endpoint", wrong).stderr
    assert reason(TASK, *options, "--save", str(one)).returncode == 2, "a run is not written over"
    assert "--endpoint" in reason("--help").stdout
    beside = reason("compare", str(one), str(other))
    assert "(the same)" in beside.stdout
    exported = json.loads(reason("export", str(one)).stdout)["messages"]
    assert [message["role"] for message in exported] == ["system", "user", "assistant", "user", "assistant"]


# Small parts


def test_secrets_are_taken_out() -> None:
    text = (
        "sk-abcdefghijklmnop1234 ts_0123abcd_ABCDEFGHIJKLMNOP Authorization: Bearer abcdefghijklmnop "
        'password="hunter2hunter2" postgres://ada:secretsecret@db/x eyJhbGciOi.eyJzdWIiOiIx.abc'
    )
    clean_text = redacted(text)
    for secret in ("abcdefghijklmnop", "ABCDEFGHIJKLMNOP", "hunter2", "secretsecret", "eyJzdWIi"):
        assert secret not in clean_text, clean_text
    assert redacted("a plain text, with tokens: 5") == "a plain text, with tokens: 5"
    assert as_chat  # exported by the command, above


def test_references_are_read_off_the_code() -> None:
    code = "x = tools.a.b(1)\nfor one in range(3): tools.parallel(tools.c.d.later())\ntools['e__f']()\nnot_tools.g.h()"
    assert references(code) == {("a", "b"), ("c", "d"), ("e__f",)}
    assert references("this is no code (") == set()


def test_a_long_answer_takes_no_time() -> None:
    started = time.process_time()
    for text in ("```python\n" * 40_000, "-----BEGIN PRIVATE KEY-----" * 20_000):
        with pytest.raises(FormError):
            read_answer(text, "stop")
        redacted(text)
    references("-" * 60_000 + "1")
    assert time.process_time() - started < 5


def test_answers_are_read_as_they_are_written() -> None:
    assert read_answer("FINAL: 42", "stop").final == "42"
    assert read_answer("So:\n**FINAL ANSWER:** 42\nreally", "stop").final == "42\nreally"
    assert not read_answer("CANNOT: no", "stop").possible
    assert read_answer("```py\nx = '''\n`a`\n'''\n```", "stop").code == "x = '''\n`a`\n'''"
    shown = "FINAL: two:\n```json\n{}\n```\nand\n```python\nimport os\n```"
    assert read_answer(shown, "stop").final == shown.removeprefix("FINAL: "), "code in an end is shown, and not run"
    assert read_answer("It said\n```json\n{}\n```\nNow:\n```python\nprint(1)\n```", "stop").code == "print(1)"
    for cut_off in ("FINAL: the balance is 12", "Well, I", "```python\nprint("):
        with pytest.raises(FormError, match="cut off"):
            read_answer(cut_off, "length")
    with pytest.raises(FormError):
        read_answer("", "stop")
