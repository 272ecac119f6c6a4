"""`toolscore bench search FOLDER`: how well the right tool is found, on labelled sets."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from toolscore.bench.labelled import LeftOut, print_left_out, queries_of, tools_of
from toolscore.discovery.search.index import Doc, ExactVectors, Index, vector_text
from toolscore.discovery.search.search import argument_words
from toolscore.embedding import Embedder, LightEmbedder

__all__ = ["LANGUAGES", "doc_of_record", "evaluate", "print_table", "run_search_bench"]

TOP = 10
LANGUAGES = frozenset({"de", "es", "zh"})
"""Kinds of tasks that are translations of others of their set."""
DRAWN = 30
"""Depth of the picture."""


def run_search_bench(
    folders: Sequence[Path], *, half: str = "all", limit: int | None = None, picture: Path | None = None,
    quiet: bool = False, embedder: Embedder | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score each set below the folders, print a table unless `quiet`, and return the figures.

    Args:
        half: `even`, `odd` or `all` of the queries: tune on one half, check on the other.
        limit: at most so many queries a set.
        picture: where to draw what is found against what it costs a model to read; a PNG or SVG file.

    Raises:
        FileNotFoundError: no set is there.
    """
    from rich.console import Console
    from rich.progress import track

    sets = sorted(
        path.parent
        for folder in folders
        for path in folder.rglob("queries.jsonl")
        if (path.parent / "tools.jsonl").is_file()
    )
    if not sets:
        raise FileNotFoundError(f"no set below {folders[0]}: a folder with tools.jsonl and queries.jsonl")
    embedder = embedder or LightEmbedder()
    results: dict[str, dict[str, Any]] = {}
    left_out: dict[str, LeftOut] = {}
    for path in track(sets, "measuring", console=Console(stderr=True), transient=True, disable=quiet):
        left_out[path.name] = LeftOut()
        tools = tools_of(path, left_out[path.name])
        queries = queries_of(path / "queries.jsonl", tools, left_out[path.name])
        queries = queries if half == "all" else queries[(half == "odd") :: 2]
        for language in sorted({_language(query) for query in queries}):
            own = [query for query in queries if _language(query) == language]
            results[f"{path.name} {language}".strip()] = evaluate(tools, own[:limit], embedder)
    names = ("ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "mrr")
    mean = {name: round(statistics.mean(result[name] for result in results.values()), 4) for name in names}
    skipped = {name: dict(one) for name, one in left_out.items() if one}
    report = {"sets": results, "mean": mean, "half": half, "left_out": skipped}
    if picture is not None:
        _draw(results, picture)
        report["picture"] = str(picture)
    for result in results.values():
        del result["found_at"]
    if not quiet:
        _print(report)
        print_left_out(left_out)
        if picture is not None:
            Console().print(f"picture: {picture}")
    return report


def _language(query: dict[str, Any]) -> str:
    """Of a task that is a translation of another; else nothing."""
    kind = query.get("kind")
    return kind if kind in LANGUAGES else ""


def evaluate(tools: list[dict[str, Any]], queries: list[dict[str, Any]], embedder: Embedder) -> dict[str, Any]:
    """The figures of one set.

    Args:
        tools: `id`, `name`, `description`, optional `input_schema`, `server`, `category`, `tags`, `tools`.
        queries: `query`, `relevant` (ids of tools, all equally right), optional `exclude` (ids that do not count).
    """
    import numpy

    docs = [doc_of_record(tool) for tool in tools]
    place = {doc.key: number for number, doc in enumerate(docs)}
    embedder.embed(["warm"])
    started = time.perf_counter()
    index = Index(
        docs, ExactVectors(embedder.embed([vector_text(doc) for doc in docs])), embedder.weight, embedder.words
    )
    built = time.perf_counter() - started
    sums = {"ndcg_at_10": 0.0, "recall_at_1": 0.0, "recall_at_5": 0.0, "recall_at_10": 0.0, "mrr": 0.0}
    milliseconds = []
    found_at = [0.0] * DRAWN
    queries = [query for query in queries if query["relevant"]]
    if not queries or not docs:
        raise ValueError("a set needs tools, and queries with something relevant")
    for query in queries:
        began = time.perf_counter()
        scores = index.rank(query["query"], embedder.embed).scores
        scores[[place[one] for one in query.get("exclude") or ()]] = -math.inf
        best = numpy.argpartition(-scores, DRAWN)[:DRAWN] if len(docs) > DRAWN else numpy.arange(len(docs))
        order = sorted(best.tolist(), key=lambda number: (-scores[number], docs[number].key))
        milliseconds.append((time.perf_counter() - began) * 1000)
        relevant = set(query["relevant"])
        deep = [docs[number].key in relevant for number in order]
        hits = deep[:TOP]
        for depth in range(DRAWN):
            found_at[depth] += sum(deep[: depth + 1]) / len(relevant)
        ideal = sum(1 / math.log2(place + 2) for place in range(min(len(relevant), TOP)))
        sums["ndcg_at_10"] += sum(hit / math.log2(place + 2) for place, hit in enumerate(hits)) / ideal
        for depth in (1, 5, 10):
            sums[f"recall_at_{depth}"] += sum(hits[:depth]) / len(relevant)
        sums["mrr"] += next((1 / (place + 1) for place, hit in enumerate(hits) if hit), 0.0)
    milliseconds.sort()
    return {
        **{name: round(value / max(1, len(queries)), 4) for name, value in sums.items()},
        "queries": len(queries),
        "tools": len(docs),
        "p50_ms": round(milliseconds[len(milliseconds) // 2], 3),
        "p95_ms": round(milliseconds[int(len(milliseconds) * 0.95)], 3),
        "build_seconds": round(built, 3),
        "index_mb": round(index.nbytes / 1e6, 1),
        "found_at": [value / max(1, len(queries)) for value in found_at],
    }


def doc_of_record(tool: dict[str, Any]) -> Doc:
    """An entry of tools.jsonl."""
    words: list[str] = []
    argument_words(tool.get("input_schema"), words)
    for inner in tool.get("tools") or []:
        words += [str(inner.get("name", "")), str(inner.get("description") or "")]
    about = [tool.get("server"), tool.get("category"), tool.get("title"), *(tool.get("categories") or []),
             *(tool.get("tags") or [])]  # fmt: skip
    server = " ".join(str(part) for part in about if part)
    return Doc(tool["id"], tool["name"], tool.get("description") or "", " ".join(words), server)


def _print(report: dict[str, Any]) -> None:
    columns = (
        "ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "mrr", "p50_ms", "p95_ms", "build_seconds",
        "index_mb",
    )  # fmt: skip
    heads = ("set", "tools", "queries", "nDCG@10", "R@1", "R@5", "R@10", "MRR", "p50 ms", "p95 ms", "built s", "MB")
    rows = [
        (name, str(result["tools"]), str(result["queries"]), *(f"{result[key]:.3f}" for key in columns))
        for name, result in report["sets"].items()
    ]
    print_table(heads, rows, ("mean", "", "", *(f"{report['mean'][key]:.3f}" for key in columns[:5])))


def _draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """What share of the right tools a model sees, against how many it has to read."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    depths = range(1, DRAWN + 1)
    for name, result in results.items():
        axes.plot(depths, result["found_at"], linewidth=1.5, label=f"{name} ({result['tools']:,} tools)")
    axes.set(xlabel="tools shown to the model", ylabel="share of the right ones among them", ylim=(0, 1.01))
    axes.set_title("Trade-off: what is found, what is read")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], last: Sequence[str]) -> None:
    """Print figures, the first column to the left, and a last row set apart."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row(*last)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
