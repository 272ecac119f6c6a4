"""`toolscore bench gaps FOLDER…`: how well a missing tool is noticed, on labelled sets; and the model's fit.

Questions come from two kinds of files. `gap.jsonl` says for each task whether a tool is there. Of each `queries.jsonl`,
which says which tools do a task, questions are made here: registries of 10 to 1,000 tools, of its own ones and of
unrelated ones (`mcp_tools_10k.jsonl.gz`), with the tools that do the task, and without them.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolscore.bench.labelled import LeftOut, gap_questions, print_left_out, queries_of, tools_of
from toolscore.bench.search import LANGUAGES, doc_of_record, print_table
from toolscore.discovery.gaps.evidence import FEATURES, Background, GapModel, evidence_for, load_model
from toolscore.discovery.search.index import Doc, ExactVectors, Index, vector_text
from toolscore.embedding import Embedder, LightEmbedder

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

__all__ = ["fit", "measure", "run_gap_bench"]

SUREST = 0.7
MADE = "made"
MADE_WEIGHT = 6.0
"""Questions that are made here are as a gateway's are: published ones often offer one tool, or ten at random."""
MADE_TASKS = 400
"""Of a set; each makes two questions."""
SMALLEST, LARGEST = 10, 1000
UNRELATED = 2500
LIKE = 0.5
"""An unrelated tool with a larger cosine to one that does the task may do it, too, and is left out."""
TOLERATED = 0.05
"""Such a share may be told the opposite of what is true."""
RIDGE = 10.0
"""Weight of the penalty on large coefficients, beside the mean of the samples' losses times their number."""
FIGURES = (
    "auroc", "balanced_accuracy", "macro_f1", "accuracy_at_70", "called_gap", "gaps_found", "p50_ms", "p95_ms",
)  # fmt: skip


def run_gap_bench(
    folders: Sequence[Path], *, half: str = "all", limit: int | None = None, fit_into: Path | None = None,
    held_out: bool = False, picture: Path | None = None, quiet: bool = False, embedder: Embedder | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score each set below the folders, print a table unless `quiet`, and return the figures.

    Args:
        half: `even`, `odd` or `all` of the pairs of questions.
        limit: at most so many questions a set.
        fit_into: a file of models; the embedder's is fitted on these sets first, and put there.
        held_out: judge each source (`bfcl` of `bfcl_live` and `bfcl_pool`) by a model that is fitted on the others.
        picture: where to draw calibration and trade-off; a PNG or SVG file.

    Raises:
        FileNotFoundError: no set is there.
    """
    from rich.console import Console
    from rich.progress import track

    sets = sorted(path for folder in folders for path in folder.rglob("*.jsonl") if _has_questions(path))
    if not sets:
        raise FileNotFoundError(f"no set below {folders[0]}: a folder with tools.jsonl and gap.jsonl or queries.jsonl")
    embedder = embedder or LightEmbedder()
    words = embedder if isinstance(embedder, LightEmbedder) else LightEmbedder()
    background = Background(embedder, words)
    unrelated = _unrelated(folders)
    samples: dict[str, Sample] = {}
    left_out: dict[str, LeftOut] = {}
    for path in track(sets, "measuring", console=Console(stderr=True), transient=True, disable=quiet):
        skipped = left_out[f"{path.parent.name}/{path.stem}"] = LeftOut()
        tools = tools_of(path.parent, skipped)
        read = queries_of if path.name == "queries.jsonl" else gap_questions
        questions = read(path, tools, skipped)
        if half != "all":
            questions = [one for number, one in enumerate(questions) if number // 2 % 2 == (half == "odd")]
        if path.name == "queries.jsonl":
            made = _make(tools, questions, min(MADE_TASKS, limit or MADE_TASKS), unrelated, embedder, background)
            samples[f"{path.parent.name}/{MADE}"] = made
        else:
            samples[f"{path.parent.name}/{path.stem}"] = _evidence_of(tools, questions[:limit], embedder, background)
    if fit_into is not None:
        _save(_fit(samples, embedder.model), fit_into)
        models = dict.fromkeys(samples, _read(fit_into)[embedder.model])
    elif held_out:
        models = _held_out(samples, embedder.model)
    else:
        models = dict.fromkeys(samples, load_model(embedder.model))
    results, answers = {}, []
    for name, (features, truth, milliseconds) in samples.items():
        said = [models[name].probability(row) for row in features]
        answers.append((said, truth))
        results[name] = {
            **measure(said, truth),
            **_told(models[name], said, truth),
            "questions": len(truth),
            "p50_ms": milliseconds[len(milliseconds) // 2],
            "p95_ms": milliseconds[int(len(milliseconds) * 0.95)],
        }
    mean = {key: round(statistics.mean(result[key] for result in results.values()), 4) for key in FIGURES}
    report = {"sets": results, "mean": mean, "half": half, "model": embedder.model, "held_out": held_out,
              "left_out": {name: dict(one) for name, one in left_out.items() if one}}  # fmt: skip
    if picture is not None:
        _draw(answers, picture)
        report["picture"] = str(picture)
    if not quiet:
        heads = ("set", "questions", "AUROC", "balanced acc.", "macro F1", "acc. at 70 %", "called a gap",
                 "gaps found", "p50 ms", "p95 ms")  # fmt: skip
        rows = [
            (name, str(result["questions"]), *(f"{result[key]:.3f}" for key in FIGURES))
            for name, result in results.items()
        ]
        print_table(heads, rows, ("mean", "", *(f"{mean[key]:.3f}" for key in FIGURES)))
        print_left_out(left_out)
        if picture is not None:
            Console().print(f"picture: {picture}")
    return report


Sample = tuple[list[list[float]], list[bool], list[float]]
"""Features and truth of each question, and the milliseconds that each took, sorted."""


def _has_questions(path: Path) -> bool:
    if not (path.parent / "tools.jsonl").is_file():
        return False
    return path.name == "queries.jsonl" or (path.stem.startswith("gap") and not path.stem.endswith("_registry"))


def _told(model: GapModel, said: list[float], truth: list[bool]) -> dict[str, float]:
    """`called_gap`: the share of the tasks that a tool does which are called gaps. `gaps_found`: of those without."""
    doable = [one for one, true in zip(said, truth, strict=True) if true]
    missing = [one for one, true in zip(said, truth, strict=True) if not true]
    return {
        "called_gap": sum(one < model.gap_below for one in doable) / max(1, len(doable)),
        "gaps_found": sum(one < model.gap_below for one in missing) / max(1, len(missing)),
    }


def _unrelated(folders: Iterable[Path]) -> list[Doc]:
    """Tools of many servers, to fill registries with."""
    found: list[Doc] = []
    for folder in folders:
        for path in sorted(folder.glob("mcp_tools_10k.jsonl.gz")):
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
            for tool in map(json.loads, random.Random(1).sample(lines, min(UNRELATED, len(lines)))):
                arguments = " ".join(map(str, tool.get("args") or []))
                found.append(Doc(tool["id"], tool["name"], tool.get("description") or "", arguments, tool["server"]))
    return found


def _make(
    tools: list[dict[str, Any]], queries: list[dict[str, Any]], limit: int, unrelated: list[Doc], embedder: Embedder,
    background: Background,
) -> Sample:  # fmt: skip
    """Questions of a set of tasks whose tools are known: half of the registries have them."""
    import numpy

    chance = random.Random(7)
    own = [doc_of_record(tool) for tool in tools]
    known = {doc.key for doc in own}
    docs = own + [doc for doc in unrelated if doc.key not in known]
    vectors = embedder.embed([vector_text(doc) for doc in docs])
    index = Index(docs, ExactVectors(vectors))
    place = {doc.key: number for number, doc in enumerate(docs)}
    queries = [one for one in queries if one.get("kind") not in LANGUAGES]
    rows, truth, milliseconds = [], [], []
    for query in chance.sample(queries, min(limit, len(queries))):
        right = [place[key] for key in query["relevant"]]
        unlike = (vectors[len(own) :] @ vectors[right].T).max(axis=1) < LIKE
        left_out = {place[key] for key in query["exclude"]}
        others = [number for number in range(len(own)) if number not in right and number not in left_out]
        fillers = [len(own) + number for number in range(len(unlike)) if unlike[number]]
        for has in (True, False):
            size = int(10 ** chance.uniform(math.log10(SMALLEST), math.log10(LARGEST)))
            few = min(len(others), int(size * chance.random() / 2))
            places = chance.sample(others, few) + chance.sample(fillers, min(len(fillers), size - few))
            places = sorted(places + (right if has or not places else []))
            began = time.perf_counter()
            rows.append(evidence_for(query["query"], index, background, embedder, numpy.array(places)).features)
            milliseconds.append(round((time.perf_counter() - began) * 1000, 3))
            truth.append(has)
    return rows, truth, sorted(milliseconds)


def _source(name: str) -> str:
    return name.split("/", maxsplit=1)[0].split("_", maxsplit=1)[0]


def _fit(samples: dict[str, Sample], model: str) -> GapModel:
    weights = [MADE_WEIGHT if name.endswith(MADE) else 1.0 for name in samples]
    return fit([(features, truth) for features, truth, _ in samples.values()], model, weights)


def _held_out(samples: dict[str, Sample], model: str) -> dict[str, GapModel]:
    """For each set a model that saw nothing of its source."""
    fitted = {}
    for source in {_source(name) for name in samples}:
        others = {name: sample for name, sample in samples.items() if _source(name) != source}
        if not others:
            raise ValueError("to hold a source out, two are needed")
        fitted[source] = _fit(others, model)
    return {name: fitted[_source(name)] for name in samples}


def _evidence_of(
    tools: list[dict[str, Any]], questions: list[dict[str, Any]], embedder: Embedder, background: Background
) -> Sample:
    import numpy

    docs = [doc_of_record(tool) for tool in tools]
    index = Index(docs, ExactVectors(embedder.embed([vector_text(doc) for doc in docs])))
    place = {doc.key: number for number, doc in enumerate(docs)}
    rows, truth, milliseconds = [], [], []
    for question in questions:
        places = numpy.array([place[key] for key in question["tools"]])
        began = time.perf_counter()
        rows.append(evidence_for(question["query"], index, background, embedder, places).features)
        milliseconds.append(round((time.perf_counter() - began) * 1000, 3))
        truth.append(bool(question["has_tool"]))
    if not rows:
        raise ValueError("a set needs questions")
    return rows, truth, sorted(milliseconds)


def measure(said: list[float], truth: list[bool]) -> dict[str, float]:
    """How good probabilities are.

    Returns:
        auroc: that a task with a tool gets a higher one than a task without. balanced_accuracy, macro_f1: at 0.5.
        accuracy_at_70: of the surest 70 %. calibration_error: mean distance between probability and frequency.
    """
    import numpy

    p, y = numpy.array(said), numpy.array(truth, bool)
    order = numpy.argsort(p, kind="stable")
    ranks = numpy.empty(len(p))
    _, inverse, counts = numpy.unique(p[order], return_inverse=True, return_counts=True)
    ends = numpy.cumsum(counts)
    ranks[order] = (ends - (counts - 1) / 2)[inverse]
    positive, negative = int(y.sum()), int((~y).sum())
    yes = p > 0.5
    hit, spared = float((yes & y).sum()), float((~yes & ~y).sum())
    f1 = [
        2 * right / max(1.0, 2 * right + wrong)
        for right, wrong in ((hit, float((yes != y).sum())), (spared, float((yes != y).sum())))
    ]
    surest = numpy.argsort(-numpy.abs(p - 0.5), kind="stable")[: max(1, int(len(p) * SUREST))]
    return {
        "auroc": (float(ranks[y].sum()) - positive * (positive + 1) / 2) / max(1, positive * negative),
        "balanced_accuracy": (hit / max(1, positive) + spared / max(1, negative)) / 2,
        "macro_f1": sum(f1) / 2,
        "accuracy_at_70": float((yes == y)[surest].mean()),
        "calibration_error": sum(
            share * abs(frequency - said) for said, frequency, share in _calibration([(said, truth)])
        ),
    }


def _calibration(answers: list[tuple[list[float], list[bool]]], bins: int = 10) -> list[tuple[float, float, float]]:
    """Mean probability, weighted frequency and share of the samples, bin by bin; both outcomes count alike in a set."""
    import numpy

    p = numpy.concatenate([numpy.array(said) for said, _ in answers])
    y = numpy.concatenate([numpy.array(truth, float) for _, truth in answers])
    weight = numpy.concatenate([_weights(numpy.array(truth, bool)) for _, truth in answers])
    found = []
    for number in range(bins):
        inside = (p >= number / bins) & ((p < (number + 1) / bins) | (number == bins - 1))
        if inside.any():
            share = weight[inside]
            found.append(
                (
                    float(numpy.average(p[inside], weights=share)),
                    float(numpy.average(y[inside], weights=share)),
                    float(share.sum() / weight.sum()),
                )
            )
    return found


def _weights(truth: Array) -> Array:
    """Both outcomes count half of a set, and each set the same."""
    import numpy

    positive = max(1, int(truth.sum()))
    return numpy.where(truth, 0.5 / positive, 0.5 / max(1, len(truth) - positive))


def fit(
    samples: list[tuple[list[list[float]], list[bool]]], model: str, counts: Sequence[float] | None = None
) -> GapModel:
    """Logistic regression with a small penalty, by Newton's method.

    Args:
        counts: how much each set counts; `None`: all the same. Those that count most say where the bounds lie.
    """
    import numpy

    x = numpy.concatenate([numpy.array(rows) for rows, _ in samples])
    y = numpy.concatenate([numpy.array(truth, float) for _, truth in samples])
    counts = counts or [1.0] * len(samples)
    each = [_weights(numpy.array(truth, bool)) for _, truth in samples]
    weight = numpy.concatenate([one * count for one, count in zip(each, counts, strict=True)])
    weight *= len(weight) / weight.sum()
    mean, scale = x.mean(axis=0), numpy.maximum(x.std(axis=0), 1e-3)
    design = numpy.hstack([(x - mean) / scale, numpy.ones((len(x), 1))])
    penalty = numpy.diag([RIDGE] * len(FEATURES) + [0.0])
    coefficients = numpy.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + numpy.exp(-design @ coefficients))
        gradient = design.T @ (weight * (p - y)) + penalty @ coefficients
        step = numpy.linalg.solve((design * (weight * p * (1 - p))[:, None]).T @ design + penalty, gradient)
        coefficients -= step
        if float(numpy.abs(step).max()) < 1e-9:
            break
    p = 1 / (1 + numpy.exp(-design @ coefficients))
    bounding = numpy.concatenate([one * (count == max(counts)) for one, count in zip(each, counts, strict=True)])
    gap_below = _quantile(p[y > 0.5], bounding[y > 0.5], TOLERATED)
    sufficient_above = _quantile(p[y < 0.5], bounding[y < 0.5], 1 - TOLERATED)
    return GapModel(
        model=model,
        weights=[round(float(value), 5) for value in coefficients[:-1]],
        mean=[round(float(value), 5) for value in mean],
        scale=[round(float(value), 5) for value in scale],
        bias=round(float(coefficients[-1]), 5),
        gap_below=round(min(gap_below, 0.5), 4),
        sufficient_above=round(max(sufficient_above, 0.5), 4),
    )


def _quantile(values: Array, weights: Array, share: float) -> float:
    """The value below which a share of the weight lies."""
    import numpy

    order = numpy.argsort(values, kind="stable")
    heaped = numpy.cumsum(weights[order])
    return float(values[order][min(len(values) - 1, int(numpy.searchsorted(heaped, share * heaped[-1])))])


def _read(path: Path) -> dict[str, GapModel]:
    known = msgspec.json.decode(path.read_bytes(), type=list[GapModel]) if path.is_file() else []
    return {model.model: model for model in known}


def _save(model: GapModel, path: Path) -> None:
    models = _read(path) | {model.model: model}
    said = [msgspec.to_builtins(models[name]) for name in sorted(models)]
    path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _draw(answers: list[tuple[list[float], list[bool]]], path: Path) -> None:
    import numpy
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = _calibration(answers)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="perfect")
    left.plot([one[0] for one in bins], [one[1] for one in bins], marker="o", color="tab:blue", label="measured")
    left.set(xlabel="probability said", ylabel="share that had a tool", title="Calibration", xlim=(0, 1), ylim=(0, 1))
    left.legend()
    right.set(xlabel="share of the questions answered, the surest first", ylabel="of these right", title="Trade-off")
    coverage = numpy.linspace(0.1, 1, 19)
    curves = []
    for said, truth in answers:
        p, y = numpy.array(said), numpy.array(truth, bool)
        right_ones = ((p > 0.5) == y)[numpy.argsort(-numpy.abs(p - 0.5), kind="stable")]
        curves.append([right_ones[: max(1, int(len(p) * share))].mean() for share in coverage])
        right.plot(coverage, curves[-1], color="0.8", linewidth=1)
    right.plot(coverage, numpy.mean(curves, axis=0), color="tab:blue", linewidth=2, label="mean of the sets")
    right.axvline(SUREST, color="0.5", linestyle=":", linewidth=1)
    right.set(ylim=(0.5, 1.01))
    right.legend()
    figure.savefig(path, dpi=150)
