"""Texts as vectors. Light by default: `wordllama`, averaged word vectors with nothing but numpy below it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy

__all__ = ["Embedder", "LightEmbedder"]

# One product of a matrix and a vector takes a tenth of a millisecond; waking other threads for it takes more, and on a
# busy machine a hundred times more. Read when numpy is imported, which is later.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class Embedder(Protocol):
    """Makes vectors of texts."""

    def embed(self, texts: list[str]) -> numpy.ndarray[Any, Any]:
        """One row of unit length a text, float32; of zeros for a text that says nothing."""
        ...


class LightEmbedder:
    """`wordllama`'s packaged 256 dimensions. Loaded at its first use (0.5 s, 60 MB); needs no network."""

    def __init__(self) -> None:
        self._model: Any = None
        self._loading = threading.Lock()

    def embed(self, texts: list[str]) -> numpy.ndarray[Any, Any]:
        with self._loading:
            if self._model is None:
                self._model = _load()
        import numpy

        with numpy.errstate(invalid="ignore", divide="ignore"):  # a text without a single word has no direction
            vectors = self._model.embed(texts, norm=True)
        return cast("numpy.ndarray[Any, Any]", numpy.nan_to_num(vectors, copy=False))


def _load() -> Any:
    """The two files of the package; its own loader would ask a network for them."""
    from importlib.resources import files

    from safetensors import safe_open
    from tokenizers import Tokenizer
    from wordllama.inference import WordLlamaInference

    package = files("wordllama")
    tokenizer = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    with safe_open(str(package / "weights" / "l2_supercat_256.safetensors"), framework="np") as weights:
        return WordLlamaInference(weights.get_tensor("embedding.weight"), tokenizer)
