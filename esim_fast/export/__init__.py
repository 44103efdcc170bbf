"""Export a trained model to ONNX, to run it without PyTorch and without this library."""

import json
import os
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..classifier import Classifier
from ..data.vocabulary import PADDING_ID, UNKNOWN_ID
from ..files import check_entries, check_kind, replace_files
from ..model import ESIM
from ..tokenizing import TOKENIZERS, name_of
from .checking import greatest_difference
from .graph import LENGTHS, SIDES, Graph, add_decision, add_logits
from .quantizing import quantized

if TYPE_CHECKING:
    from onnx import ModelProto

_LARGEST = 2**31 - 2**26  # bytes of weights; an ONNX file holds 2**31 bytes, names and words included


class OnnxFile(NamedTuple):
    """The files that ``to_onnx`` wrote.

    Attributes:
        path: the ONNX model.
        description: the JSON file beside it.
        size: of the ONNX model, in bytes.
        difference: the largest difference between its logits and the network's, on random batches.
    """

    path: Path
    description: Path
    size: int
    difference: float


def to_onnx(
    model: Classifier | ESIM, path: str | os.PathLike[str], *, int8: bool = False, words: bool = False
) -> OnnxFile:
    """Export a model to ``NAME.onnx``, with ``NAME.onnx.json`` beside it to prepare its input.

    The inputs are ``premise [B, Lp]``, ``hypothesis [B, Lh]``, ``premise_lengths [B]`` and ``hypothesis_lengths [B]``.
    The first ``lengths[b]`` entries of a row are its sentence; the padding after them may hold any valid id or word.
    Dimensions and lengths may be 0.

    The outputs are ``logits [B, num_labels]`` and, for a classification model, ``probabilities [B, num_labels]`` (with
    the temperature applied) and ``label [B]``, the index of the label that ``esim_fast.Classifier.predict`` returns.
    Ids, lengths and ``label`` are int64; logits and probabilities are float32.

    Files are written only after ONNX Runtime has reproduced the network's logits on random batches.

    Args:
        model: the model, on any device and in any dtype. The exported weights are float32. Given a network alone,
            ``NAME.onnx.json`` has no vocabulary and no labels.
        path: the file to write. An existing file is replaced once the export has succeeded.
        int8: quantize LSTMs and products by weights with ONNX Runtime's quantizer. Word vectors stay float32.
        words: the inputs are strings, which the graph looks up. Split the sentences with the model's tokenizer.

    Raises:
        TypeError: ``model`` is neither a Classifier nor an ESIM.
        ValueError: the name does not end in ``.onnx``, the tokenizer is a custom function, ``words`` is set for a
            network alone, or the weights are too large for one file, not finite or not an ESIM's. Also if the logits
            differ by more than 1e-5 of the largest (or of 1, if that is more), or in int8 by more than a tenth of
            their norm.
        DataError: ``path`` exists and is not a file.
        ImportError: onnx or onnxruntime is not installed.
        OSError: the file cannot be written.
    """
    path = Path(path)
    net = model.net if isinstance(model, Classifier) else model
    if not isinstance(net, ESIM):
        raise TypeError(f"model must be an esim_fast.Classifier or an esim_fast.ESIM, got {type(model)}")
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"{path}: expected a name that ends in .onnx")
    beside = path.with_name(f"{path.name}.json")
    for file in (path, beside):
        check_kind(file)
    text = json.dumps(_description(model, words), indent=2, ensure_ascii=False) + "\n"
    for package in ("onnx", "onnxruntime"):
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(f'{path}: needs {package}: pip install "esim_fast[onnx]"') from error
    vocabulary = model.vocabulary.words if words and isinstance(model, Classifier) else None
    try:
        proto = _graph_of(model, net, vocabulary)
        content = (quantized(proto) if int8 else proto).SerializeToString()
        difference = greatest_difference(content, net, vocabulary, int8)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    replace_files(
        {
            beside: lambda partial: partial.write_text(text, encoding="utf-8"),
            path: lambda partial: partial.write_bytes(content),
        }
    )
    return OnnxFile(path, beside, len(content), difference)


def _description(model: Classifier | ESIM, words: bool) -> dict[str, Any]:
    """The contents of ``NAME.onnx.json``."""
    if isinstance(model, ESIM):
        if words:
            raise ValueError("words need a vocabulary: pass the Classifier and not its network")
        return {"model": "ESIM", "inputs": "ids", "padding_id": model.config.padding_idx or 0}
    tokenizer = name_of(model.tokenizer)
    if tokenizer not in TOKENIZERS:
        raise ValueError(
            f"tokenizer {tokenizer}: a custom function cannot be exported; to_onnx(model.net, …) exports the network "
            "alone, which takes ids"
        )
    found = {
        "model": "ESIM",
        "task": model.task,
        "labels": model.labels,
        "temperature": model.temperature,
        "threshold": model.threshold,
        "tokenizer": tokenizer,
    }
    if words:
        return {**found, "inputs": "words"}
    ids = {word: index for index, word in enumerate(model.vocabulary.words) if word in model.vocabulary}
    return {**found, "inputs": "ids", "unknown_id": UNKNOWN_ID, "padding_id": PADDING_ID, "vocabulary": ids}


def _graph_of(model: Classifier | ESIM, net: ESIM, words: list[str] | None) -> "ModelProto":
    entries, config = net.state_dict(), net.config
    size = 4 * sum(entry.numel() for entry in entries.values())
    if size > _LARGEST:
        raise ValueError(f"the weights take {size / 1e9:.1f} GB, and an ONNX file holds at most 2.1 GB")
    with torch.device("meta"):
        expected = ESIM(**asdict(config)).state_dict()
    check_entries(entries, expected)
    weights = {name: entry.float().cpu().numpy() for name, entry in entries.items()}

    graph = Graph()
    outputs: dict[str, Any] = {add_logits(graph, config, weights, words): (np.float32, ["B", config.num_labels])}
    if isinstance(model, Classifier) and model.task == "classification":
        outputs |= {"probabilities": (np.float32, ["B", config.num_labels]), "label": (np.int64, ["B"])}
        add_decision(graph, model.temperature, model.positive, model.threshold)
    kind = np.int64 if words is None else np.object_
    inputs: dict[str, Any] = {side: (kind, ["B", f"{side}_words"]) for side in SIDES}
    inputs |= {name: (np.int64, ["B"]) for name in LENGTHS}
    return graph.model(inputs, outputs)
