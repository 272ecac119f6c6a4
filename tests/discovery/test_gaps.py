"""Gaps: which steps of a task are covered, how sure that is, and who may judge the rest."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import EXECUTOR, ROOT, GatewayProcess, bearer, odd, running_gateway, toolscore, wait_for

from toolscore.bench.gaps import fit, measure, run_gap_bench
from toolscore.core.models import Tool
from toolscore.discovery.gaps.detector import steps_of
from toolscore.discovery.gaps.evidence import FEATURES, Background, evidence_for, keywords, load_model, verdict_of
from toolscore.discovery.gaps.general import GeneralTools, kind_of
from toolscore.discovery.gaps.judge import Judge, JudgeRules, Ruling
from toolscore.discovery.gaps.reasons import needs_of, reason_for
from toolscore.discovery.search.index import Doc, ExactVectors, Index, vector_text
from toolscore.embedding import LightEmbedder

GENERAL = ROOT / "tests/data/general_tasks/tasks.jsonl"
LIGHT = LightEmbedder()
DOCS = [
    Doc("time__now", "get_current_time", "Get current time in a specific timezone", "timezone IANA name", "time"),
    Doc("git__log", "git_log", "Shows the commit logs of a repository", "repo_path max_count", "git"),
    Doc("files__read", "read_text_file", "Read the complete contents of a file as text", "path", "files"),
    Doc("weather__forecast", "get_forecast", "Weather forecast of a city for the next days", "city days", "weather"),
]


@functools.cache
def background() -> Background:
    return Background(LIGHT, LIGHT)


def index_of(docs: list[Doc]) -> Index:
    return Index(docs, ExactVectors(LIGHT.embed([vector_text(doc) for doc in docs])))


def verdict(task: str, docs: list[Doc] = DOCS) -> tuple[str, float]:
    found = evidence_for(task, index_of(docs), background(), LIGHT)
    return verdict_of(load_model("light"), found.features)


@pytest.mark.parametrize("task", ["what will the weather in Oslo be for the next three days", "show me the commit log"])
def test_a_task_with_a_tool(task: str) -> None:
    said, confidence = verdict(task)
    assert said == "sufficient"
    assert confidence > 0.7


def test_tasks_without_one() -> None:
    tasks = ("send a message to my team on Slack", "translate this letter into French", "order a pizza with olives")
    said = [verdict(task)[0] for task in tasks]
    assert "sufficient" not in said
    assert said.count("gap") >= 2


def test_what_is_missing_is_said_in_words_that_catalogs_know() -> None:
    assert keywords("please send a message to my team on Slack right now", background()) == [
        "send", "message", "team", "slack",
    ]  # fmt: skip
    assert keywords("zzyzx qqfoo", background()) == ["zzyzx", "qqfoo"], "better than nothing"


@pytest.mark.parametrize(
    ("task", "steps"),
    [
        ("what time is it", 1),
        ("read notes.txt from the disk and then send it to Slack", 2),
        ("Find three flights to Rome. Book the cheapest one; put it into my calendar", 3),
        ("list cats and dogs", 1),
        ("find a cheap flight to Rome and book it for Ada", 2),
        ("what is the weather in Oslo and send it to Ada", 2),
        ("show the profit and loss of last year", 1),
        ("please show the open and close prices of Apple stock", 1),
        ("list the pull and push requests of this repository", 1),
        ("please fetch the page and summarize it and post the summary to Slack", 2),
        ("a b. c d. e f", 1),
    ],
)
def test_the_steps_of_a_task(task: str, steps: int) -> None:
    assert len(steps_of(task)) == steps


@given(st.text(min_size=1, max_size=300), st.lists(st.text(max_size=30), min_size=1, max_size=4))
@pytest.mark.long
def test_any_task_can_be_judged(task: str, names: list[str]) -> None:
    docs = [Doc(str(number), name, name) for number, name in enumerate(names)]
    found = evidence_for(task, index_of(docs), background(), LIGHT)
    assert len(found.features) == len(FEATURES)
    assert all(math.isfinite(value) for value in found.features)
    said, confidence = verdict_of(load_model("light"), found.features)
    assert said in ("sufficient", "unsure", "gap")
    assert 0.5 <= confidence <= 1


def test_only_the_places_that_are_asked_for_count() -> None:
    places = numpy.array([1, 2])
    whole = evidence_for("what is the weather in Oslo", index_of(DOCS), background(), LIGHT, places)
    alone = evidence_for("what is the weather in Oslo", index_of(DOCS[1:3]), background(), LIGHT)
    assert whole.features == pytest.approx(alone.features, abs=1e-5)
    assert whole.best == [number + 1 for number in alone.best]


# The measure


def test_the_measure_measures() -> None:
    perfect = measure([0.9, 0.8, 0.2, 0.1], [True, True, False, False])
    assert (perfect["auroc"], perfect["balanced_accuracy"], perfect["macro_f1"], perfect["accuracy_at_70"]) == (
        1,
        1,
        1,
        1,
    )
    blind = measure([0.7] * 6, [True, True, True, False, False, False])
    assert (blind["auroc"], blind["balanced_accuracy"]) == (0.5, 0.5)
    assert blind["macro_f1"] == pytest.approx(1 / 3)
    backwards = measure([0.1, 0.9], [True, False])
    assert (backwards["auroc"], backwards["balanced_accuracy"]) == (0, 0)


def test_the_fit_finds_what_tells_them_apart() -> None:
    rng = numpy.random.default_rng(1)
    truth = [bool(one) for one in rng.integers(0, 2, 400)]
    rows = rng.normal(size=(400, len(FEATURES)))
    rows[:, 3] += [2.0 if one else 0.0 for one in truth]
    model = fit([(rows.tolist(), truth)], "test")
    said = [model.probability(row) for row in rows.tolist()]
    assert measure(said, truth)["auroc"] > 0.85
    assert max(range(len(FEATURES)), key=lambda number: abs(model.weights[number])) == 3
    assert measure(said, truth)["calibration_error"] < 0.1


def set_of_questions(folder: Path) -> Path:
    tools = [{"id": doc.key, "name": doc.name, "description": doc.text} for doc in DOCS]
    offered = [doc.key for doc in DOCS]
    questions = [
        {"id": "1", "query": "show the commit log", "tools": offered, "has_tool": True, "gold": ["git__log"]},
        {"id": "2", "query": "order a pizza", "tools": offered, "has_tool": False, "gold": []},
    ]
    (folder / "tools.jsonl").write_text("\n".join(map(json.dumps, tools)))
    (folder / "gap.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return folder


@pytest.mark.long
def test_the_bench_prints_a_table_and_draws_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "gaps.png"
    done = toolscore("bench", "gaps", str(set_of_questions(tmp_path)), "--picture", str(picture))
    assert done.returncode == 0, done.stderr
    assert "balanced acc." in done.stdout
    assert "1.000" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert toolscore("bench", "gaps", "/nowhere").returncode == 2
    assert toolscore("bench", "gaps", str(tmp_path), "--mode", "psychic").returncode == 2


def test_a_model_can_be_fitted_anew(tmp_path: Path) -> None:
    models = tmp_path / "models.json"
    report = run_gap_bench([set_of_questions(tmp_path)], fit_into=models, quiet=True)
    assert report["mean"]["auroc"] == 1
    assert [model["model"] for model in json.loads(models.read_text())] == ["light"]


SHARED = ROOT.parent / "shared" / "data" / "tool_search"
OURS = ROOT / "tests" / "data"


@pytest.mark.long
def test_sources_are_judged_by_models_that_never_saw_them() -> None:
    report = run_gap_bench([OURS], held_out=True, quiet=True)
    assert {name.split("/")[0] for name in report["sets"]} == {"known_servers", "short_tasks"}
    assert all(0.6 < one["auroc"] <= 1 for one in report["sets"].values())


@pytest.mark.long
def test_real_tasks_are_seldom_called_gaps() -> None:
    """Thirty short tasks that tools of 23 servers do, and thirty that none does. The model was not fitted on them."""
    found = run_gap_bench([OURS / "known_servers"], quiet=True)["sets"]["known_servers/gap"]
    assert found["auroc"] > 0.8
    assert found["called_gap"] <= 0.2
    assert found["gaps_found"] >= 0.5


@pytest.mark.skipif(not SHARED.is_dir(), reason="the labelled sets are not beside the checkout")
@pytest.mark.long
def test_the_model_that_ships_is_what_the_bench_makes(tmp_path: Path) -> None:
    models = tmp_path / "models.json"
    run_gap_bench([SHARED, OURS / "short_tasks"], fit_into=models, quiet=True)
    made = json.loads(models.read_text())[0]
    ships = msgspec.to_builtins(load_model("light"))
    assert made["model"] == ships["model"]
    for name in made.keys() - {"model"}:
        assert made[name] == pytest.approx(ships[name], abs=0.01), name


# A judge


class Llm(BaseHTTPRequestHandler):
    """Speaks OpenAI's chat API: says what it was told to say, `Llm.nothing` where that is nothing of use."""

    nothing = "I cannot say."
    says = nothing
    status = 200
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Llm.asked.append({**body, "authorization": self.headers.get("authorization")})
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": Llm.says}}]}).encode()
        self.send_response(Llm.status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def llm_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Llm)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _quiet_llm() -> None:
    Llm.says, Llm.status = Llm.nothing, 200
    Llm.asked.clear()


# The judge alone


def rulings(rules: JudgeRules, *tasks: str, before: Callable[[int], None] = lambda number: None) -> list[Ruling | None]:
    """What a judge says of tasks, one after another."""

    async def ask() -> list[Ruling | None]:
        async with aiohttp.ClientSession() as http:
            judge = Judge(http, rules)
            said = []
            for number, task in enumerate(tasks):
                before(number)
                said.append(await judge.ruling(task, "for a test", []))
            return said

    return asyncio.run(ask())


def test_a_judge_is_asked_so_often_in_an_hour_and_once_for_each_question(llm_url: str) -> None:
    Llm.says = 'Sure: {"sufficient": true, "missing": ""}'
    rules = JudgeRules(url=llm_url, model="solomon", per_hour=2)
    assert rulings(rules, "one", "one", "two", "three", "two") == [
        Ruling(True), Ruling(True), Ruling(True), None, Ruling(True),
    ]  # fmt: skip
    assert len(Llm.asked) == 2, "the hour's questions are used up"
    assert Llm.asked[0]["max_tokens"] <= 200
    assert "Task: one\nContext: for a test" in Llm.asked[0]["messages"][0]["content"]


@pytest.mark.parametrize("says", ["", "no JSON", '{"sufficient": 3}', "}{", '{"sufficient": true', "x" * 300_000])
def test_a_judge_may_say_anything(llm_url: str, says: str) -> None:
    def then(number: int) -> None:
        Llm.says = says if number == 0 else '{"sufficient": false, "missing": "a parrot"}'

    rules = JudgeRules(url=llm_url)
    assert rulings(rules, "x", "x", before=then) == [None, Ruling(False, "a parrot")], "it is asked again"


def test_a_judge_that_fails_leaves_the_word_to_the_model(llm_url: str) -> None:
    Llm.says, Llm.status = '{"sufficient": true}', 500
    assert rulings(JudgeRules(url=llm_url), "x") == [None]
    assert rulings(JudgeRules(url="http://127.0.0.1:9/v1"), "x") == [None]
    assert rulings(JudgeRules(), "x") == [None], "there is none"


def test_the_key_of_a_judge_is_a_reference(llm_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "sesame")
    rulings(JudgeRules(url=llm_url, key="${env:SECRET_OF_THE_GATEWAY}"), "x")
    rulings(JudgeRules(url=llm_url, key="${env:NOT_SET_ANYWHERE}"), "x")
    assert [one["authorization"] for one in Llm.asked] == ["Bearer sesame", None]


def test_another_model_rules_anew(llm_url: str) -> None:
    async def ask() -> list[Ruling | None]:
        async with aiohttp.ClientSession() as http:
            judge = Judge(http, JudgeRules(url=llm_url, model="solomon"))
            Llm.says = '{"sufficient": true}'
            first = await judge.ruling("x", "", [])
            Llm.says = '{"sufficient": false}'
            judge.use(JudgeRules(url=llm_url, model="solomon", per_hour=3))
            same = await judge.ruling("x", "", [])
            judge.use(JudgeRules(url=llm_url, model="salomo"))
            return [first, same, await judge.ruling("x", "", [])]

    assert asyncio.run(ask()) == [Ruling(True), Ruling(True), Ruling(False)]
    assert [one["model"] for one in Llm.asked] == ["solomon", "salomo"]


# In the gateway


@pytest.fixture(scope="module")
def process(llm_url: str) -> Iterator[GatewayProcess]:
    """Its judge says nothing of use until it is told to."""
    settings = (
        "discovery:\n  catalog: {registries: []}\n"
        f"  judge: {{url: '{llm_url}', model: solomon, per_hour: 1000, key: '${{env:SECRET_OF_THE_GATEWAY}}'}}\n"
    )
    with running_gateway({"alpha": odd("echo")}, settings=settings, python=True) as gateway:
        gateway.wait_for_state("alpha", "up")
        gateway.wait_for_state(EXECUTOR, "up")
        yield gateway


@pytest.mark.long
def test_over_rest_mcp_and_the_command_line(process: GatewayProcess) -> None:
    task = "post the weather in Oslo to our Slack channel"
    answer = process.http.post("/api/v1/tools/analyze-gap", json={"task_description": task, "context": {"team": "ops"}})
    data = answer.json()["data"]
    assert (data["verdict"], data["sufficient"], data["recommended_action"]) == ("gap", False, "request-capability")
    assert data["judged_by"] == "model"
    assert "slack" in data["missing"][0]["keywords"]
    result = process.execute("toolscore__analyze_gap", {"task_description": task})["data"]
    assert result["structured_content"]["missing"] == data["missing"]
    assert json.loads(result["content"][0]["text"]) == result["structured_content"]
    said = toolscore("gap", task, gateway=process)
    assert said.returncode == 1
    assert "No tool here does it" in said.stdout
    assert "toolscore catalog search" in said.stdout
    as_json = toolscore("gap", task, "--json", gateway=process)
    assert json.loads(as_json.stdout)["missing"] == data["missing"]
    acquired = process.http.post("/api/v1/tools/request-capability", json={"task_description": task}).json()["data"]
    assert acquired["status"] == "needs_approval"
    assert acquired["candidates"][0]["install_with"].startswith("toolscore install ")
    assert not acquired["candidates"][0]["allowed"], "agents are denied by default"


def test_what_waits_for_approval_is_told_and_can_be_dismissed(
    process: GatewayProcess, new_key: Callable[[GatewayProcess, str], str]
) -> None:
    task = "post the weather in Bergen to our Slack channel"
    ada = new_key(process, "ada")
    for _ in range(2):  # once is enough
        process.http.post("/api/v1/tools/request-capability", json={"task_description": task}, headers=bearer(ada))
    waiting = [one for one in process.get("/api/v1/catalog/approvals")["approvals"] if one["task"] == task]
    assert [(one["principal"], bool(one["servers"])) for one in waiting] == [("ada", True)]
    assert process.http.get("/api/v1/catalog/approvals", headers=bearer(ada)).status_code == 403
    path = f"/api/v1/catalog/approvals/{waiting[0]['approval_id']}"
    assert process.http.delete(path, headers=bearer(ada)).status_code == 403
    assert process.http.delete(path).json()["data"] == {"approval_id": waiting[0]["approval_id"]}
    assert process.http.delete(path).status_code == 404
    wait_for(lambda: process.event_seen("approval_ended", approval_id=waiting[0]["approval_id"]))
    bob = new_key(process, "bob")
    for key, count in ((ada, 1), (bob, 0)):
        events = process.http.get("/api/v1/events?events=approval_needed&limit=1000", headers=bearer(key)).json()
        assert len([one for one in events["data"]["events"] if one["task"] == task]) == count, "it is another's"


@pytest.mark.parametrize(
    "body", [{}, {"task_description": ""}, {"task_description": " "}, {"task_description": "x" * 4001}, {"task": "x"},
             {"task_description": 1}, {"task_description": "x", "context": 1}],
)  # fmt: skip
def test_what_is_no_task_is_refused(process: GatewayProcess, body: dict[str, Any]) -> None:
    for path in ("analyze-gap", "request-capability"):
        answer = process.http.post(f"/api/v1/tools/{path}", json=body)
        assert answer.status_code == 422, body
        assert answer.json()["error"]["code"] == "invalid_arguments"


def test_a_gap_is_told_to_its_own_principal_alone(
    process: GatewayProcess, new_key: Callable[[GatewayProcess, str], str]
) -> None:
    ada, bob = (new_key(process, name) for name in ("ada", "guest"))
    for key in (ada, bob):
        body = {"task_description": "knit me a red scarf"}
        answer = process.http.post("/api/v1/tools/analyze-gap", json=body, headers=bearer(key)).json()
        assert answer["data"]["verdict"] == "gap"

    def first_heard(key: str) -> str:
        """Whose gap comes first: ada's was the first of all."""
        url = "/api/v1/events/stream?events=gap_detected&since=0"
        with process.http.stream("GET", url, headers=bearer(key), timeout=120) as stream:
            line = next(line for line in stream.iter_lines() if line.startswith("data: "))
        return str(json.loads(line[6:])["principal"])

    assert wait_for(lambda: process.event_seen("gap_detected", principal="ada")), "the operator hears of all"
    assert first_heard(ada) == "ada"
    assert first_heard(bob) == "guest"


def test_a_judge_is_asked_what_the_model_is_unsure_of(process: GatewayProcess) -> None:
    def analyzed(task: str) -> dict[str, Any]:
        return dict(process.http.post("/api/v1/tools/analyze-gap", json={"task_description": task}).json()["data"])

    unsure = [
        task for task in ("say a text again", "compute a sum in python", "run some code", "repeat what I wrote",
                          "python script", "text", "echo", "code that runs",
                          "add two numbers up", "tell me what I said", "a program that counts", "speak to me")
        if analyzed(task)["verdict"] == "unsure"
    ]  # fmt: skip
    assert len(unsure) >= 3, unsure
    Llm.asked.clear()
    Llm.says = 'Sure: {"sufficient": true, "missing": ""}'
    first = analyzed(unsure[0])
    assert (first["verdict"], first["judged_by"]) == ("sufficient", "solomon")
    assert analyzed(unsure[0])["judged_by"] == "solomon"
    assert len(Llm.asked) == 1, "the same question is asked once"
    assert Llm.asked[0]["model"] == "solomon"
    assert Llm.asked[0]["authorization"] == "Bearer do not pass on", "its key, by reference"
    Llm.says = '{"sufficient": false, "missing": "a talking parrot"}'
    second = analyzed(unsure[1])
    assert second["verdict"] == "gap"
    assert second["missing"][0]["capability"] == "a talking parrot"
    Llm.says = Llm.nothing
    third = analyzed(unsure[2])
    assert (third["verdict"], third["judged_by"]) == ("unsure", "model"), "the judge said nothing of use"
    assert "do not pass on" not in process.output()


def tool(name: str, description: str = "", **properties: Any) -> Tool:
    required = [key for key, about in properties.items() if about.pop("required", True)]
    schema = {"type": "object", "properties": properties, "required": required}
    definition = {"name": name, "description": description, "inputSchema": schema}
    return Tool(
        tool_id=f"s__{name}", server_id="s", name=name, definition=definition, definition_hash="", first_seen=""
    )  # fmt: skip


RUNS = tool("python_execute", "Run Python code in a sandbox", code={"type": "string"})
SHELL = tool("bash", "Run a command in a shell", command={"type": "string"})
BROWSES = tool("browser_navigate", "Navigate to a page", url={"type": "string"})
OTHER = tool("something_else")


@pytest.mark.parametrize(
    ("name", "description", "argument", "kind"),
    [
        ("python_execute", "Run Python code in a sandbox", "code", "python"),
        ("runPythonCode", "", "python_code", "python"),
        ("execute-code", "Executes code in a Python notebook", "source_code", "python"),
        ("execute_code", "Compile and run a Solidity contract", "code", None),
        ("run_shell_command", "", "command", "shell"),
        ("execute_command", "Run a command in the terminal", "command", "shell"),
        ("execute_command", "Run a Minecraft command", "command", None),
        ("run_command", "Send a command to Redis", "command", None),
        ("puppeteer_navigate", "Navigate to a URL", "url", "browser"),
        ("navigate", "Drive the robot to a place", "x", None),
        ("python_sessions", "List sessions of Python", "code", None),
        ("run_query", "Run a query in a shell", "command", None),
    ],
)
def test_general_tools_are_known_by_what_they_are(name: str, description: str, argument: str, kind: str | None) -> None:
    assert kind_of(tool(name, description, **{argument: {"type": "string"}})) == kind


def test_general_tools_cover_what_they_do_and_little_else() -> None:
    general = GeneralTools(LIGHT, background(), load_model("light"))
    tasks = [json.loads(line) for line in GENERAL.read_text().splitlines()]
    for kind, one in (("python", RUNS), ("shell", SHELL), ("browser", BROWSES)):
        done = [general.covering(task["query"], [one, OTHER]) is not None for task in tasks if task["kind"] == kind]
        others = [task["query"] for task in tasks if task["kind"] == "none"]
        wrong = [task for task in others if general.covering(task, [one, OTHER])]
        assert sum(done) >= 0.7 * len(done), kind
        assert len(wrong) <= 0.07 * len(others), wrong
    task = "what is the highest common factor of 12 and 18"
    found = general.covering(task, [OTHER, RUNS])
    assert found is not None
    assert (found.tool.name, found.ability) == ("python_execute", "number theory")
    assert general.covering(task, [OTHER]) is None


NUMBER, TEXT = {"type": "number"}, {"type": "string"}


@pytest.mark.parametrize(
    ("task", "arguments", "needs"),
    [
        ("read a web page", {"url": TEXT}, ["url"]),
        ("read example.com", {"url": TEXT}, []),
        ("read a web page", {"url": {**TEXT, "default": "https://x"}}, []),
        ("send it", {"to_email": TEXT, "subject": TEXT}, ["to_email"]),
        ("send it to ada@example.com", {"to_email": TEXT}, []),
        ("add them", {"a": NUMBER, "b": NUMBER}, ["a", "b"]),
        ("add two and three", {"a": NUMBER, "b": NUMBER}, []),
        ("book a table", {"date": TEXT, "city": TEXT}, ["date"]),
        ("book a table for tomorrow", {"date": TEXT}, []),
        ("show the file", {"path": TEXT}, ["path"]),
        ("show notes.txt", {"path": TEXT}, []),
        ("how is the weather", {"city": TEXT, "days": {**NUMBER, "required": False}}, []),
        ("a fifteen minutes timer", {"minutes": NUMBER}, []),
        ("wie wird das Wetter morgen in Berlin", {"date": TEXT}, []),
        ("read the file Makefile", {"file_path": TEXT}, []),
    ],
)
def test_what_a_task_does_not_give_is_said_where_it_can_be_told(
    task: str, arguments: dict[str, Any], needs: list[str]
) -> None:
    given = {name: dict(about) for name, about in arguments.items()}
    assert needs_of(task, tool("does", **given)) == needs


@pytest.mark.parametrize(
    "schema", [True, {}, {"required": "x"}, {"properties": [], "required": [1]}, {"properties": {}, "required": [{}]}]
)
def test_a_schema_of_any_shape_needs_nothing(schema: Any) -> None:
    odd_one = msgspec.structs.replace(tool("does"), definition={"name": "does", "inputSchema": schema})
    assert needs_of("do it", odd_one) == []
    assert reason_for("do it", "gap", odd_one, background())


def test_a_verdict_names_the_tool_and_the_reason() -> None:
    weather = tool("get_forecast", "Weather forecast of a city for the next days")
    said = [reason_for("the weather forecast for Oslo", verdict, weather, background())
            for verdict in ("sufficient", "unsure", "gap")]  # fmt: skip
    assert said == [
        "s__get_forecast does it: it speaks of forecast and weather",
        "perhaps s__get_forecast: it speaks of forecast and weather, not of oslo",
        "s__get_forecast comes nearest: it speaks of forecast and weather, not of oslo",
    ]
    assert (
        reason_for("wie wird das Wetter", "sufficient", weather, background())
        == "s__get_forecast does it in other words"
    )
    assert reason_for("order a pizza", "gap", weather, background()) == (
        "s__get_forecast comes nearest: no word of pizza and order"
    )
    assert reason_for("order a pizza", "gap", None, background()) == "there is no tool"
