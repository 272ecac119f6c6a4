"""What texts mean: the four embedders, and the indexes over their vectors. Real MiniLM, usearch and Milvus."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest
from support import odd, running_gateway, wait_for

from toolscore.bench.search import run_search_bench
from toolscore.discovery.gaps.evidence import load_model
from toolscore.discovery.search.index import ExactVectors, clauses
from toolscore.discovery.search.neighbours import HnswVectors, MilvusVectors, kind_of_index, vector_index
from toolscore.embedding import (
    EmbeddingError,
    EmbeddingRules,
    LightEmbedder,
    MultilingualEmbedder,
    RemoteEmbedder,
    SemanticEmbedder,
    embedder_for,
    is_foreign,
)

LIGHT, SEMANTIC, MULTILINGUAL = LightEmbedder(), SemanticEmbedder(), MultilingualEmbedder()
KNOWN_SERVERS = Path(__file__).parents[1] / "data" / "known_servers"


@pytest.mark.parametrize("embedder", [LIGHT, SEMANTIC, MULTILINGUAL], ids=["light", "semantic", "multilingual"])
@pytest.mark.long
def test_vectors_have_length_one_and_say_what_is_alike(embedder: Any) -> None:
    texts = [
        "the weather forecast for tomorrow",
        "will it rain in the next days",
        "restart the database server",
        "",
        "  ",
    ]
    rows = embedder.embed(texts)
    assert rows.dtype == numpy.float32
    assert numpy.linalg.norm(rows[:3], axis=1) == pytest.approx([1, 1, 1], abs=1e-3)
    assert not numpy.isnan(rows).any()
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.1
    again = embedder.embed(list(reversed(texts)))[::-1]
    assert numpy.abs(rows - again).max() < 0.02, "a text means the same in any company"
    assert embedder.embed(["word " * 5000]).shape[0] == 1
    assert load_model(embedder.model).model == embedder.model, "a gap model was fitted for it"


@pytest.mark.long
def test_tasks_in_other_languages_find_their_tools() -> None:
    """The tools of 23 servers that people use, and thirty tasks in four languages."""
    found = run_search_bench([KNOWN_SERVERS], embedder=MULTILINGUAL, quiet=True)["sets"]
    light = run_search_bench([KNOWN_SERVERS], embedder=LIGHT, quiet=True)["sets"]
    score = {name: (one["ndcg_at_10"], light[name]["ndcg_at_10"]) for name, one in found.items()}
    assert score["known_servers"][0] > 0.6
    assert score["known_servers"][0] > score["known_servers"][1] > 0.55
    for language in ("de", "es", "zh"):
        assert score[f"known_servers {language}"][0] > 0.47 > 0.35 > score[f"known_servers {language}"][1]


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("what time is it in Tokyo", False),
        ("kubectl rollout", False),
        ("Wie spät ist es gerade in Tokio?", True),
        ("¿Qué hora es ahora mismo en Tokio?", True),
        ("东京现在几点", True),
        ("Zeitzonenumrechnung", False),  # one word may be a name
        ("42", False),
        ("?!", False),
    ],
)
def test_another_language_is_noticed(text: str, foreign: bool) -> None:
    assert is_foreign(text) is foreign


def test_what_is_installed_is_used() -> None:
    assert embedder_for(EmbeddingRules(), None).model == "multilingual", "the tests have it"
    for mode in ("light", "multilingual", "semantic"):
        assert embedder_for(EmbeddingRules(mode=mode), None).model == mode  # type: ignore[arg-type]


@pytest.mark.long
def test_who_asks_in_another_language_is_told_what_helps(open_rooms: Any) -> None:
    async def run() -> None:
        for embedder, hinted in ((LIGHT, True), (MULTILINGUAL, False)):
            async with open_rooms(embedder) as rooms:
                assert bool(rooms.search.hint("Wie spät ist es gerade in Tokio?")) is hinted
                assert rooms.search.hint("what time is it in Tokyo") is None
                rooms.list_tools("time", get_current_time="Get current time in a specific timezone")
                found = await rooms.search.search("Wie spät ist es gerade in Tokio?", principal="ada")
                assert bool(found) is not hinted

    asyncio.run(run())


@pytest.mark.long
def test_many_new_tools_are_found_by_words_until_they_are_read(open_rooms: Any) -> None:
    many = {f"tool_{number:03d}": f"The tool number {number} of many" for number in range(600)}

    async def run() -> None:
        async with open_rooms(LIGHT) as rooms:
            rooms.list_tools("large", rain="Tells whether one gets wet.", **many)
            assert (await rooms.search.index()).vectors is None
            assert (await rooms.search.search("gets wet", principal="ada"))[0].tool.name == "rain"
            whole = await rooms.search.index(whole=True)
            assert whole.vectors is not None
            assert await rooms.search.index() is whole
            rooms.list_tools("late", snow="Tells whether it snows.")
            assert (await rooms.search.index()).vectors is not None, "one more is read at once"
            rooms.list_tools("larger", **{f"x{name}": f"x {said}" for name, said in many.items()})
            first = await rooms.search.index()
            rooms.list_tools("again", **{f"y{name}": f"y {said}" for name, said in many.items()})
            assert first.vectors is None
            assert len(await rooms.search.index(whole=True)) == 3 * 600 + 2, "what was begun is begun anew"

    asyncio.run(run())


class Endpoint(BaseHTTPRequestHandler):
    """Speaks OpenAI's embeddings API, with the light model behind it."""

    down = False
    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Endpoint.seen.append({**body, "authorization": self.headers.get("authorization"), "path": self.path})
        rows = LIGHT.embed(body["input"])
        data = [{"index": number, "embedding": (row * 3).tolist()} for number, row in enumerate(rows)]
        answer = json.dumps({"data": data[::-1]}).encode()
        self.send_response(503 if Endpoint.down else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Endpoint.down = False
    Endpoint.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_an_endpoint_is_asked_in_batches_and_its_order_is_kept(endpoint: str) -> None:
    embedder = RemoteEmbedder(endpoint, "nomic", "sesame")
    texts = [f"text number {number}" for number in range(70)]
    assert numpy.abs(embedder.embed(texts) - LIGHT.embed(texts)).max() < 1e-5
    assert [len(one["input"]) for one in Endpoint.seen] == [32, 32, 6]
    assert {(one["model"], one["authorization"], one["path"]) for one in Endpoint.seen} == {
        ("nomic", "Bearer sesame", "/v1/embeddings"),
    }  # fmt: skip
    Endpoint.down = True
    with pytest.raises(EmbeddingError, match="503"):
        embedder.embed(["x"])
    with pytest.raises(EmbeddingError):
        RemoteEmbedder("http://127.0.0.1:9/v1", "x").embed(["x"])


@pytest.mark.long
def test_a_gateway_on_an_endpoint_and_milvus_goes_on_with_words_when_the_endpoint_fails(
    endpoint: str, tmp_path: Path
) -> None:
    settings = (
        f"embeddings: {{mode: endpoint, url: '{endpoint}', model: nomic, key: '${{env:SECRET_OF_THE_GATEWAY}}', "
        f"index: milvus, milvus_uri: '{tmp_path / 'm.db'}'}}\n"
        "discovery: {catalog: {registries: []}}\n"
    )
    with running_gateway({"alpha": odd("echo"), "many": odd("many")}, settings=settings) as process:
        process.wait_for_state("many", "up")
        process.wait_for_state("alpha", "up")

        def first(query: str) -> str:
            body = {"query": query}
            found = process.http.post("/api/v1/tools/search", json=body, timeout=120).json()["data"]["tools"]
            return str(found[0]["tool_id"])

        assert first("echo a text") == "alpha__echo"
        wait_for(lambda: (tmp_path / "m.db").exists())
        wait_for(lambda: "tools are read " in process.output())
        assert first("echo a text") == "alpha__echo"
        assert Endpoint.seen[0]["authorization"] == "Bearer do not pass on"
        assert "words alone" not in process.output()
        Endpoint.down = True
        assert first("echo a text") == "alpha__echo"
        process.wait_for_output("words alone")
        gap = process.http.post("/api/v1/tools/analyze-gap", json={"task_description": "knit a scarf"}).json()
        assert gap["error"]["code"] == "upstream_unavailable"
        assert "do not pass on" not in process.output()


class Counting:
    """The semantic embedder; notes what it embeds."""

    model, weight, english, words = SEMANTIC.model, SEMANTIC.weight, SEMANTIC.english, SEMANTIC.words

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: list[str]) -> Any:
        self.texts += texts
        return SEMANTIC.embed(texts)


@pytest.mark.long
def test_semantic_search_embeds_nothing_twice(open_rooms: Any) -> None:
    query = "do I need an umbrella tomorrow, will it rain"
    many = {f"tool_{number:03d}": f"The tool number {number}" for number in range(60)}

    async def first(embedder: Counting) -> str:
        async with open_rooms(embedder) as rooms:
            rooms.list_tools("many", **many)
            rooms.list_tools("sky", forecast="Tells the weather of the next days.")
            tools = await rooms.search.search(query, principal="ada")
            return str(tools[0].tool.tool_id)

    embedder, again = Counting(), Counting()
    assert asyncio.run(first(embedder)) == "sky__forecast", "not a word in common"
    asked = [query, *clauses(query)]
    assert len(embedder.texts) == len(many) + 1 + len(asked)
    assert asyncio.run(first(again)) == "sky__forecast"
    assert again.texts == asked, "the vectors of tools are in the database"


# Indexes over vectors


def rows_of(count: int, seed: int = 1, dimensions: int = 64) -> Any:
    rng = numpy.random.default_rng(seed)
    centres = rng.normal(size=(50, dimensions))
    rows = centres[rng.integers(0, 50, count)] + rng.normal(size=(count, dimensions))
    return (rows / numpy.linalg.norm(rows, axis=1, keepdims=True)).astype(numpy.float32)


def recall(index: Any, rows: Any, queries: Any, count: int = 10) -> float:
    exact, found = ExactVectors(rows).cosines(queries), index.cosines(queries)
    assert found.shape == exact.shape
    hits = 0
    for true, said in zip(exact, found, strict=True):
        hits += len(set(numpy.argsort(-true)[:count].tolist()) & set(numpy.argsort(-said)[:count].tolist()))
        best = int(said.argmax())
        assert said[best] == pytest.approx(true[best], abs=0.01)
        assert (said >= true - 0.02).mean() > 0.9, "what was not found has a bound on its cosine"
    return hits / (count * len(queries))


@pytest.mark.long
def test_hnsw_finds_what_exact_finds() -> None:
    rows, queries = rows_of(20_000, dimensions=32), rows_of(30, seed=2, dimensions=32)
    assert recall(HnswVectors(rows), rows, queries) >= 0.95


@pytest.mark.long
def test_milvus_finds_what_exact_finds_and_keeps_what_is_there(tmp_path: Path) -> None:
    rows, queries = rows_of(3000), rows_of(20, seed=2)
    keys = [f"{number:032d}" for number in range(3000)]
    uri = str(tmp_path / "milvus.db")
    index = MilvusVectors(rows, keys, uri, "tools")
    assert recall(index, rows, queries) == 1
    fewer = MilvusVectors(rows[1000:], keys[1000:], uri, "tools")
    assert recall(fewer, rows[1000:], queries) == 1
    twice = MilvusVectors(rows[[5, 5, 7]], [keys[5], keys[5], keys[7]], uri, "tools")
    assert twice.cosines(rows[[5]])[0] == pytest.approx([1, 1, float(rows[5] @ rows[7])], abs=1e-3)
    with pytest.raises(EmbeddingError, match="Milvus at"):
        MilvusVectors(rows, keys, "http://127.0.0.1:9", "tools", connect_seconds=0.5)
    chosen = vector_index(rows[:10], keys[:10], EmbeddingRules(index="milvus", milvus_uri=uri), "few")
    assert isinstance(chosen, MilvusVectors)


def test_the_kind_of_index_follows_the_size() -> None:
    assert [kind_of_index(EmbeddingRules(), size) for size in (0, 30_000, 30_001)] == ["exact", "exact", "hnsw"]
    assert kind_of_index(EmbeddingRules(index="exact"), 30_001) == "exact"
    assert kind_of_index(EmbeddingRules(index="hnsw"), 10) == "hnsw"
    rows = rows_of(10)
    keys = [str(number) for number in range(10)]
    assert isinstance(vector_index(rows, keys, EmbeddingRules(), "x"), ExactVectors)
    assert isinstance(vector_index(rows, keys, EmbeddingRules(index="hnsw"), "x"), HnswVectors)
    assert isinstance(vector_index(rows[:0], [], EmbeddingRules(index="hnsw"), "x"), ExactVectors), "nothing to index"
    with pytest.raises(ValueError, match="needs `milvus_uri`"):
        EmbeddingRules(index="milvus")
