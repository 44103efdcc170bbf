"""Build the network from standard ONNX operators, in the form that ONNX Runtime runs fastest on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..config import ESIMConfig
from ..data.vocabulary import UNKNOWN_ID

if TYPE_CHECKING:
    from onnx import ModelProto

SIDES = ("premise", "hypothesis")
LENGTHS = ("premise_lengths", "hypothesis_lengths")
Values: TypeAlias = Mapping[str, tuple[type[np.generic], list[Any]]]  # dtype and shape by name
_VERSIONS = {"": 18, "ai.onnx.ml": 3}  # operator sets
_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh"}
_OUTSIDE = -1e7  # below every score (at least -2H) and every state (at least -1)
_PROJECTION = "infercomposition.composition.F"


class Graph:
    """Collect nodes and constants in order; only ``model`` needs the onnx package."""

    def __init__(self) -> None:
        self._nodes: list[tuple[str, tuple[str, ...], str, dict[str, Any]]] = []
        self._constants: dict[str, np.ndarray] = {}

    def node(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add an operator and return the name of its first output."""
        output = name or f"{op}_{len(self._nodes)}"
        self._nodes.append((op, inputs, output, attributes))
        return output

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = np.asarray(value, dtype)
        return name

    def model(self, inputs: Values, outputs: Values) -> ModelProto:
        """The finished model, checked by ONNX."""
        from onnx import checker, helper, numpy_helper  # optional

        nodes = [helper.make_node(op, given, [output], **attributes) for op, given, output, attributes in self._nodes]
        first, last = (
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
                for name, (dtype, shape) in values.items()
            ]
            for values in (inputs, outputs)
        )
        constants = [numpy_helper.from_array(value, name) for name, value in self._constants.items()]
        graph = helper.make_graph(nodes, "ESIM", first, last, constants)
        versions = [helper.make_opsetid(domain, version) for domain, version in _VERSIONS.items()]
        model = helper.make_model_gen_version(graph, opset_imports=versions, producer_name="esim_fast")
        checker.check_model(model, full_check=True)
        return model


def add_logits(graph: Graph, config: ESIMConfig, weights: Mapping[str, np.ndarray], words: Sequence[str] | None) -> str:
    """Add the network up to ``logits [B, num_labels]`` and return their name.

    The inputs are ``premise [B, Lp]``, ``hypothesis [B, Lh]`` and their lengths, int64 ``[B]``.

    Args:
        graph: the graph to extend.
        config: the network's.
        weights: the network's weights in float32, by their names in its state dict.
        words: the vocabulary if the inputs are words, or None if they are ids.
    """
    embedding = graph.constant(weights["embedding.weight"], np.float32)
    encode, compose = (_bilstm(graph, weights, name) for name in ("encoder.lstm", "infercomposition.composition.lstm"))
    sentences = [_Sentence(graph, side, words) for side in SIDES]
    for x in sentences:  # separately, because batching both would add padding
        embedded = graph.node("Gather", embedding, graph.node("Transpose", x.ids, perm=[1, 0]))  # [L, B, E]
        states = graph.node("Transpose", encode(embedded, x.steps), perm=[2, 0, 1, 3])  # [B, L, 2, H]
        x.encoded = graph.node("Reshape", states, graph.constant([0, 0, 2 * config.hidden_size]))

    projection = _joined(weights[f"{_PROJECTION}.weight"]), weights[f"{_PROJECTION}.bias"]
    pooled = []
    for x, aligned in zip(sentences, _aligned(graph, *sentences), strict=True):
        product = graph.node("Mul", x.encoded, aligned)
        projected = _linear(graph, graph.node("Concat", x.encoded, aligned, product, axis=2), *projection)
        projected = _activated(graph, projected, config.projection_activation)
        states = compose(graph.node("Transpose", projected, perm=[1, 0, 2]), x.steps)  # [L, 2, B, H]
        pooled.append(_pooled(graph, states, x, config.hidden_size))
    hidden, output = ([weights[f"linear.mlp.{layer}.{part}"] for part in ("weight", "bias")] for layer in (1, 3))
    hidden_units = _linear(graph, graph.node("Concat", *pooled, axis=1), *hidden)
    logits = _linear(graph, _activated(graph, hidden_units, config.classifier_activation), *output)
    pairs, zero = graph.node("Shape", LENGTHS[0]), graph.constant([0])
    return graph.node("Slice", logits, zero, pairs, zero, name="logits")


def add_decision(graph: Graph, temperature: float, positive: int | None, threshold: float | None) -> None:
    """Add ``probabilities [B, num_labels]`` and ``label [B]``, the predicted label's index.

    Args:
        graph: the graph to extend, which has ``logits``.
        temperature: the logits are divided by it.
        positive: the label, of two, that is predicted if its probability is at least ``threshold``.
        threshold: None to predict the most probable label.
    """
    scaled = graph.node("Div", "logits", graph.constant(temperature, np.float32))
    probabilities = graph.node("Softmax", scaled, axis=1, name="probabilities")
    if positive is None or threshold is None:
        graph.node("ArgMax", probabilities, axis=1, keepdims=0, name="label")
        return
    of_it = graph.node("Gather", probabilities, graph.constant(positive), axis=1)
    reached = graph.node("GreaterOrEqual", of_it, graph.constant(threshold, np.float32))
    graph.node("Where", reached, graph.constant(positive), graph.constant(1 - positive), name="label")


class _Sentence:
    """Names of one side's values: ids ``[B, L]``, lengths as int64 and int32, and the mask of its words.

    If B or L is 0, it becomes 1, because ONNX Runtime's LSTM crashes on empty input.
    """

    encoded: str

    def __init__(self, graph: Graph, side: str, words: Sequence[str] | None) -> None:
        self.ids = _not_empty(graph, side if words is None else _looked_up(graph, side, words), dimensions=2)
        self.lengths = _not_empty(graph, f"{side}_lengths", dimensions=1)
        self.steps = graph.node("Cast", self.lengths, to=6)  # int32, for ONNX's LSTM
        longest = graph.node("Squeeze", graph.node("Shape", self.ids, start=1), graph.constant([0]))
        places = graph.node("Range", graph.constant(0), longest, graph.constant(1))
        self.within = graph.node("Less", places, graph.node("Unsqueeze", self.lengths, graph.constant([1])))  # [B, L]


def _not_empty(graph: Graph, x: str, dimensions: int) -> str:
    """Extend dimensions of size 0 to size 1, filled with zeros."""
    missing = graph.node("Max", graph.node("Sub", graph.constant(1), graph.node("Shape", x)), graph.constant(0))
    return graph.node("Pad", x, graph.node("Concat", graph.constant([0] * dimensions), missing, axis=0))


def _looked_up(graph: Graph, side: str, words: Sequence[str]) -> str:
    """Words to ids; the special words are unknown in a text, as in ``esim_fast.data.Vocabulary``."""
    table: dict[str, Any] = {"keys_strings": words[2:], "values_int64s": range(2, len(words))}
    return graph.node("LabelEncoder", side, domain="ai.onnx.ml", default_int64=UNKNOWN_ID, **table)


def _aligned(graph: Graph, p: _Sentence, h: _Sentence) -> tuple[str, str]:
    """Soft alignment: the other sentence as seen from each word, ``[B, Lp, 2H]`` and ``[B, Lh, 2H]``.

    An empty sentence has zero states, so its partner is aligned with zeros, whatever the weights.
    """
    p_within = graph.node("Unsqueeze", p.within, graph.constant([2]))
    both = graph.node("And", p_within, graph.node("Unsqueeze", h.within, graph.constant([1])))
    scores = graph.node("MatMul", p.encoded, graph.node("Transpose", h.encoded, perm=[0, 2, 1]))  # [B, Lp, Lh]
    scores = graph.node("Where", both, scores, graph.constant(_OUTSIDE, np.float32))
    beta = graph.node("Transpose", graph.node("Softmax", scores, axis=1), perm=[0, 2, 1])
    return graph.node("MatMul", graph.node("Softmax", scores, axis=2), h.encoded), graph.node("MatMul", beta, p.encoded)


def _pooled(graph: Graph, states: str, x: _Sentence, size: int) -> str:
    """Average and maximum ``[B, 4H]`` of ``states [L, 2, B, H]``, which are zero at padding; zeros if empty."""
    first, last = graph.constant([0]), graph.constant([1])
    lengths = graph.node("Unsqueeze", x.lengths, last)  # [B, 1]
    words = graph.node("Cast", graph.node("Max", lengths, graph.constant(1)), to=1)  # float32
    average = graph.node("Div", graph.node("ReduceSum", states, first, keepdims=0), words)  # [2, B, H]
    mask = graph.node("Unsqueeze", graph.node("Transpose", x.within, perm=[1, 0]), graph.constant([1, 3]))
    masked = graph.node("Where", mask, states, graph.constant(_OUTSIDE, np.float32))
    maximum = graph.node("ReduceMax", masked, first, keepdims=0)
    has_words = graph.node("Greater", lengths, graph.constant(0))
    maximum = graph.node("Where", has_words, maximum, graph.constant(0, np.float32))
    v = graph.node("Transpose", graph.node("Concat", average, maximum, axis=0), perm=[1, 0, 2])  # [B, 4, H]
    return graph.node("Reshape", v, graph.constant([0, 4 * size]))


def _joined(projection: np.ndarray) -> np.ndarray:
    """Fold the weights of ``x - y`` into those of x and y, so that the projection takes 6H inputs and not 8H."""
    of_x, of_y, of_difference, of_product = np.split(projection, 4, axis=1)
    return np.concatenate([of_x + of_difference, of_y - of_difference, of_product], axis=1)


def _linear(graph: Graph, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
    product = graph.node("MatMul", x, graph.constant(weight.T, np.float32))
    return graph.node("Add", product, graph.constant(bias, np.float32))


def _activated(graph: Graph, x: str, activation: str | None) -> str:
    return x if activation is None else graph.node(_ACTIVATIONS[activation], x)


def _bilstm(graph: Graph, weights: Mapping[str, np.ndarray], name: str) -> Any:
    """A function from ``x [L, B, D]`` and int32 lengths ``[B]`` to ``[L, 2, B, H]``, zero at padding."""

    def gates(part: str) -> np.ndarray:  # PyTorch's input, forget, cell, output to ONNX's input, output, forget, cell
        return np.concatenate([np.split(weights[f"{name}.{part}"], 4)[gate] for gate in (0, 3, 1, 2)])

    def both_ways(*parts: str) -> str:
        ways = [np.concatenate([gates(f"{part}_l0{way}") for part in parts]) for way in ("", "_reverse")]
        return graph.constant(ways, np.float32)

    parameters = both_ways("weight_ih"), both_ways("weight_hh"), both_ways("bias_ih", "bias_hh")
    size = weights[f"{name}.weight_hh_l0"].shape[1]
    return lambda x, steps: graph.node("LSTM", x, *parameters, steps, hidden_size=size, direction="bidirectional")
