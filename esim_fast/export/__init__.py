"""A trained model as a file for ONNX Runtime, which needs neither PyTorch nor this library."""

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

_LARGEST = 2**31 - 2**26  # bytes of weights: an ONNX file ends at 2**31, and names and words need some


class OnnxFile(NamedTuple):
    """What :func:`to_onnx` has written."""

    path: Path
    description: Path
    size: int  # of the file at ``path``, in bytes
    difference: float  # the greatest between its logits and the network's, in the batches that it was checked on


def to_onnx(
    model: Classifier | ESIM, path: str | os.PathLike[str], *, int8: bool = False, words: bool = False
) -> OnnxFile:
    """Writes a model as ``NAME.onnx``, and beside it ``NAME.onnx.json`` with what is needed to prepare its input.

    The graph takes ``premise [B, Lp]`` and ``hypothesis [B, Lh]``, padded behind with anything that it knows, and
    ``premise_lengths [B]`` and ``hypothesis_lengths [B]``: the first ``lengths[b]`` places of a row are its sentence.
    Dimensions and lengths may be 0. It gives ``logits [B, num_labels]``; of a classifier, if it is no regression model,
    also ``probabilities``, after the temperature, and ``label [B]``, the index of the label that
    :meth:`esim_fast.Classifier.predict` gives. Ids, lengths and ``label`` are int64, all else is float32.

    Nothing is written before ONNX Runtime has given the network's logits for random batches.

    Args:
        model: on any device and in any dtype; the weights become float32. Of a network alone, ``NAME.onnx.json`` has no
            vocabulary and no labels.
        path: what it held is replaced when all is well.
        int8: LSTMs and products by weights are quantized, by ONNX Runtime's quantizer; word vectors stay float32.
        words: the graph takes strings in place of ids, and looks them up itself. Sentences must have been split by the
            model's tokenizer.

    Raises:
        TypeError: ``model`` is neither.
        ValueError: the name does not end in ``.onnx``, the tokenizer is a function of yours, ``words`` is asked of a
            network alone, the weights are too large for one file, not finite or not those of an ESIM, or logits
            differ: by more than 1e-5 of the largest (or of 1, if that is more); in int8, by more than a tenth of
            their norm.
        DataError: what is at ``path`` is no file.
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
    """What whoever runs the graph has to know."""
    if isinstance(model, ESIM):
        if words:
            raise ValueError("words need a vocabulary: give the Classifier, and not its network")
        return {"model": "ESIM", "inputs": "ids", "padding_id": model.config.padding_idx or 0}
    tokenizer = name_of(model.tokenizer)
    if tokenizer not in TOKENIZERS:
        raise ValueError(
            f"tokenizer {tokenizer}: a function of yours cannot be exported; to_onnx(model.net, …) exports the network "
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
