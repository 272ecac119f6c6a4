"""Search: the right tool first, better with use, nobody else's tasks, and nothing embedded twice."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import EXECUTOR, SERVERS, Fickle, GatewayProcess, bearer, odd, running_gateway, toolscore, wait_for

from runtimes.client import RealTimeToolClient
from toolscore.bench.gaps import run_gap_bench
from toolscore.bench.search import evaluate, run_search_bench
from toolscore.core.words import terms
from toolscore.discovery.search.index import Doc, ExactVectors, Index, clauses, vector_text
from toolscore.discovery.search.vectors import VectorCache
from toolscore.embedding import EmbeddingError, LightEmbedder
from toolscore.stores.behind import WriteBehind
from toolscore.stores.database import open_database

EMBEDDER = LightEmbedder()
DOCS = [
    Doc("time__get_current_time", "get_current_time", "Get current time in a specific timezone", "timezone", "time"),
    Doc("time__convert_time", "convert_time", "Convert time between timezones", "source_timezone target", "time"),
    Doc("git__git_log", "git_log", "Shows the commit logs", "repo_path max_count", "git"),
    Doc("files__readTextFile", "readTextFile", "Read the complete contents of a file as text", "path", "files"),
    Doc("db__query", "query", "Run a SELECT statement on the SQL database", "sql", "db"),
]


def index_of(docs: list[Doc]) -> Index:
    return Index(docs, ExactVectors(EMBEDDER.embed([vector_text(doc) for doc in docs])))


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("what is the current time in Tokyo", "time__get_current_time"),
        ("which commits were made last week", "git__git_log"),
        ("show me the contents of a text document", "files__readTextFile"),
        ("select all customers from the table", "db__query"),
        ("readTextFile", "files__readTextFile"),
        ("CONVERTING times between two zones", "time__convert_time"),
    ],
)
def test_the_right_one_is_first(query: str, key: str) -> None:
    scores = index_of(DOCS).rank(query, EMBEDDER.embed).scores
    assert DOCS[int(scores.argmax())].key == key


def test_a_query_for_two_things_finds_both() -> None:
    scores = index_of(DOCS).rank("read a file from the disk and then show the commit log", EMBEDDER.embed).scores
    best = {DOCS[number].key for number in (-scores).argsort()[:2].tolist()}
    assert best == {"files__readTextFile", "git__git_log"}
    assert clauses("read a file from the disk and then show the commit log") != []
    assert clauses("what time is it") == []


def test_what_a_small_part_of_a_task_needs_is_not_drowned() -> None:
    near = [Doc(f"weather__{what}", f"get_weather_{what}", f"Weather {what} of a city for the next days")
            for what in ("forecast", "history", "alerts", "averages", "maps", "warnings")]  # fmt: skip
    docs = [*near, Doc("mail__send", "send", "Send an email to somebody"), *DOCS]
    docs += [Doc(f"other__{number}", f"tool_{number}", f"Does the work of the kind {number}") for number in range(30)]
    query = (
        "get the weather forecast of Oslo, the weather history of Rome, the weather warnings, and send an email to Bob"
    )
    scores = index_of(docs).rank(query, EMBEDDER.embed).scores
    assert "mail__send" in [docs[number].key for number in (-scores).argsort()[:3].tolist()]


def test_words() -> None:
    assert terms("getCurrentTime HTTPServer snake_case files2go") == [
        "get", "current", "time", "http", "server", "snake", "case", "file", "2", "go",
    ]  # fmt: skip
    assert terms("東京 naïve") == ["東京", *terms("naïve")]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=40), max_size=6), st.text(max_size=200))
def test_any_text_can_be_indexed_and_asked_for(texts: list[str], query: str) -> None:
    docs = [Doc(str(number), text, text) for number, text in enumerate(texts)]
    if docs:
        scores = index_of(docs).rank(query, EMBEDDER.embed).scores
        assert scores.shape == (len(docs),)
        assert not (scores != scores).any(), "no NaN"


def test_the_measure_measures() -> None:
    tools = [{"id": doc.key, "name": doc.name, "description": doc.text} for doc in DOCS]
    right = [{"query": doc.text, "relevant": [doc.key]} for doc in DOCS]
    wrong = [{"query": doc.text, "relevant": ["none of them"]} for doc in DOCS]
    assert evaluate(tools, right, EMBEDDER)["ndcg_at_10"] == 1.0
    assert evaluate(tools, wrong, EMBEDDER)["mrr"] == 0.0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, new_key: Callable[[GatewayProcess, str], str]) -> Any:
    fickle, git = Fickle(tmp_path_factory.mktemp("fickle")), Fickle(tmp_path_factory.mktemp("git"))
    git.order(
        tools={
            **dict.fromkeys(("look", "write", "measure")),  # it has none of a city's
            "git_log": {"description": "Shows the commit logs"},
            "git_commit": {"description": "Records changes to the repository"},
            "git_status": {"description": "Shows the working tree status"},
        }
    )
    current = SERVERS / "current" / "bin"
    servers = {
        "time": {"command": str(current / "mcp-server-time")},
        "git": git.entry,
        "city": fickle.entry,
        "many": odd("many"),
    }
    rule = '{effect: deny, principals: ["bob"], servers: ["git"]}'
    with running_gateway(servers, settings=f"policy: {{rules: [{rule}]}}\n", python=True) as process:
        for server_id in (*servers, EXECUTOR):
            process.wait_for_state(server_id, "up", seconds=60)
        process.keys = {name: new_key(process, name) for name in ("ada", "bob")}  # type: ignore[attr-defined]
        process.fickle = fickle  # type: ignore[attr-defined]
        yield process


def found(gateway: GatewayProcess, query: str, limit: int = 5, who: str | None = None) -> list[dict[str, Any]]:
    headers = bearer(gateway.keys[who]) if who else {}  # type: ignore[attr-defined]
    body = {"query": query, "limit": limit}
    answer = gateway.http.post("/api/v1/tools/search", json=body, headers=headers).json()
    assert answer["success"], answer
    return list(answer["data"]["tools"])


@pytest.mark.long
def test_the_next_step_is_the_call(gateway: GatewayProcess) -> None:
    best = found(gateway, "the current time in Tokyo")[0]
    assert best["tool_id"] == "time__get_current_time"
    assert best["input_schema"]["required"] == ["timezone"]
    assert 0 < best["rank"] <= best["relevance"] <= 1
    assert gateway.execute(best["tool_id"], {"timezone": "Asia/Tokyo"})["success"]
    printed = toolscore("search", "commits", "of", "a", "repository", gateway=gateway).stdout
    assert "git__git_log" in printed
    nothing = toolscore("search", "zzzzqqq", gateway=gateway).stdout
    assert "git__" not in nothing


def test_it_is_a_command_of_the_events_socket(gateway: GatewayProcess) -> None:
    async def run() -> Any:
        async with RealTimeToolClient(gateway.events_url) as client:
            return await client.call("search_tools", {"query": "convert a time between zones", "limit": 1})

    answer = asyncio.run(run())
    assert [tool["tool_id"] for tool in answer["tools"]] == ["time__convert_time"]


def test_what_a_caller_may_not_use_is_not_found(gateway: GatewayProcess) -> None:
    assert any(tool["server_id"] == "git" for tool in found(gateway, "git commit log", who="ada"))
    assert not any(tool["server_id"] == "git" for tool in found(gateway, "git commit log", limit=100, who="bob"))


@pytest.mark.parametrize("body", [{}, {"query": ""}, {"query": 7}, {"query": "x", "limit": 0}, {"query": "x" * 5000}])
def test_bad_input_is_named(gateway: GatewayProcess, body: dict[str, Any]) -> None:
    answer = gateway.http.post("/api/v1/tools/search", json=body).json()
    assert answer["error"]["code"] == "invalid_arguments"


def test_it_learns_from_use_for_each_caller_alone(gateway: GatewayProcess) -> None:
    task = "whereabouts of the grandmother"

    def place(who: str) -> int:
        tools = [tool["tool_id"] for tool in found(gateway, task, limit=100, who=who)]
        return tools.index("city__look") if "city__look" in tools else 1000

    before = place("ada")
    assert before > 0
    for query in (task, "find out the whereabouts of my grandmother"):
        tools = found(gateway, f"{query}: look up a city in the register", who="ada")
        assert "city__look" in [tool["tool_id"] for tool in tools]
        body = {"tool_id": "city__look", "parameters": {"city": "Rome"}}
        key = gateway.keys["ada"]  # type: ignore[attr-defined]
        assert gateway.http.post("/execute_tool", json=body, headers=bearer(key)).json()["success"]
    wait_for(lambda: place("ada") == 0)  # until the tools are read only words count
    assert place("bob") == before


def test_a_new_tool_is_found_at_once(gateway: GatewayProcess) -> None:
    fickle: Fickle = gateway.fickle  # type: ignore[attr-defined]
    assert not any(tool["name"] == "weather" for tool in found(gateway, "weather forecast for tomorrow"))
    fickle.order(tools={"weather": {"description": "Forecasts the weather."}})
    gateway.http.post("/api/v1/servers/city/restart")
    wait_for(lambda: gateway.http.get("/api/v1/tools/city__weather").status_code == 200)
    assert found(gateway, "weather forecast for tomorrow")[0]["name"] == "weather"


class Counting(LightEmbedder):
    """Notes what it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def embed(self, texts: list[str]) -> Any:
        self.texts += texts
        return super().embed(texts)


def test_nothing_is_embedded_twice(open_rooms: Any) -> None:
    """Neither when the library changes nor after a restart."""
    query = "weather forecast for tomorrow"

    async def run() -> None:
        embedder = Counting()
        async with open_rooms(embedder) as rooms:
            rooms.list_tools("city", look="Looks a city up.", measure="Measures a city.")
            assert (await rooms.search.search("look up a city", principal="ada"))[0].tool.name == "look"
            assert embedder.texts == ["city look: Looks a city up.", "city measure: Measures a city.", "look up a city"]
            rooms.list_tools("city", look="Looks a city up.", weather="Forecasts the weather.")
            assert (await rooms.search.search(query, principal="ada"))[0].tool.name == "weather"
            assert embedder.texts[3:] == ["city weather: Forecasts the weather.", query], "only what is new"
        again = Counting()
        async with open_rooms(again) as rooms:
            rooms.list_tools("city", look="Looks a city up.", weather="Forecasts the weather.")
            assert (await rooms.search.search(query, principal="ada"))[0].tool.name == "weather"
        assert again.texts == [query], "vectors are kept in the database"

    asyncio.run(run())


def test_tasks_are_remembered_over_a_restart_and_forgotten_with_their_tools(open_rooms: Any) -> None:
    task = "whereabouts of the grandmother"

    async def first(rooms: Any, who: str) -> str:
        tools = await rooms.search.search(task, principal=who, remember=False)
        return str(tools[0].tool.name) if tools else ""

    async def run() -> None:
        async with open_rooms(EMBEDDER) as rooms:
            rooms.list_tools("city", look="Finds the grandmother.", write="Finds out whereabouts.")
            usual = await first(rooms, "ada")
            other = {"look": "write", "write": "look"}[usual]
            for query in (task, f"please find: {task}"):
                await rooms.search.search(query, principal="ada")
                rooms.search.succeeded("ada", f"city__{other}")
            assert await first(rooms, "ada") == other
            assert await first(rooms, "bob") == usual
        async with open_rooms(EMBEDDER) as rooms:
            rooms.list_tools("city", look="Finds the grandmother.", write="Finds out whereabouts.")
            assert await first(rooms, "ada") == other
            rooms.search.forget([f"city__{other}"])
            assert await first(rooms, "ada") == usual

    asyncio.run(run())


def test_a_bench_reads_every_form_of_a_set_and_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    tools = [{"id": "s/weather", "name": "weather", "description": "the weather of a city"}, "translate text",
             {"id": "s/mail", "name": "send_mail", "description": "send an e-mail"},
             {"id": "t/mail", "name": "send_mail", "description": "send an e-mail"}, 7]  # fmt: skip
    asked = "send an e-mail to Ada"
    queries = [
        {"query": "the weather in Berlin", "relevant": ["weather"]},
        {"query": "translate this text", "relevant": [{"name": "translate text"}]},
        {"query": asked, "relevant": ["s/mail"], "exclude": ["t/mail"]},
        {"query": asked, "relevant": ["s/mail"], "exclude": ["s/mail"]},
        {"query": asked, "relevant": ["nobody"]}, {"query": " ", "relevant": ["weather"]}, ["weather"],
    ]  # fmt: skip
    for name, rows in (("tools", tools), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{not json\n")
    report = run_search_bench([tmp_path])
    assert report["sets"]["odd"]["queries"] == 3
    assert report["sets"]["odd"]["recall_at_1"] == 1.0
    expected = {"are no JSON object": 4, "have no text": 1, "name a tool that the set has not": 1,
                "have nothing relevant": 1}  # fmt: skip
    assert report["left_out"] == {"odd": expected}
    said = capsys.readouterr().out
    assert "left out of odd: 4 rows are no JSON object" in said

    gaps = [{"query": "the weather in Berlin", "has_tool": True}, {"query": asked, "has_tool": False},
            {"query": asked}]  # fmt: skip
    (folder / "gap.jsonl").write_text("\n".join(map(json.dumps, gaps)))
    (folder / "gap_registry.jsonl").write_text('["weather", "translate text"]\n"send_mail"\n"nobody"\n')
    found = run_gap_bench([tmp_path], quiet=True)
    assert found["sets"]["odd/gap"]["questions"] == 2
    assert found["left_out"]["odd/gap"]["name a tool that the set has not"] == 1


def test_vectors_of_another_size_are_made_again(tmp_path: Path) -> None:
    class Model:
        model, english = "some", False
        widths = itertools.repeat(2)

        def embed(self, texts: list[str]) -> Any:
            return numpy.ones((len(texts), next(self.widths)), numpy.float32)

    async def run() -> None:
        model: Any = Model()
        async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as database, WriteBehind("x") as writes:
            cache = VectorCache(database, model, writes)
            assert (await cache.of(["a", "b"])).shape == (2, 2)
            model.widths = itertools.repeat(3)
            assert (await cache.of(["a", "b", "c"])).shape == (3, 3)
            model.widths = itertools.count(4)
            with pytest.raises(EmbeddingError, match="several sizes"):
                await cache.of([str(number) for number in range(600)])  # in several batches

    asyncio.run(run())


def test_a_call_says_something_of_the_search_before_it_alone(open_rooms: Any) -> None:
    async def run() -> None:
        async with open_rooms(EMBEDDER) as rooms:
            rooms.list_tools("srv", get_user="Shows the profile of a user.", delete_user="Deletes a user account.")
            await rooms.search.search("show the profile of a user account", principal="ada")
            await rooms.search.search("delete a user account for good", principal="ada")
            rooms.search.succeeded("ada", "srv__delete_user")
            found = await rooms.search.search("show the profile of a user account", principal="ada", remember=False)
            assert found[0].tool.name == "get_user"

    asyncio.run(run())
