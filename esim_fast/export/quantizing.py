"""Quantize a model to int8 with ONNX Runtime's quantizer."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

_WEIGHTS = (1, 2)  # inputs of an LSTM that are weight matrices


def quantized(model: ModelProto) -> ModelProto:
    """Quantize LSTMs and products by weights to int8; modify ``model`` in place.

    Weights have one scale per output. Activations are quantized dynamically, in every call. Weights use seven bits,
    because processors without VNNI add two products in 16 bits, which eight bits would overflow.
    """
    import onnx  # optional, like onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    _unshare(model)
    # This mark silences advice on stderr to preprocess the model, which ONNX Runtime does on every load.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        quantize_dynamic(model, path, op_types_to_quantize=["LSTM", "MatMul"], per_channel=True, reduce_range=True)
        found = onnx.load(path)
    _share(found)
    return found


def _unshare(model: ModelProto) -> None:
    """Copy weights that LSTMs share, because the quantizer would transpose them once per LSTM."""
    weights, taken = {tensor.name: tensor for tensor in model.graph.initializer}, set()
    for number, node in enumerate(model.graph.node):
        for place in _WEIGHTS if node.op_type == "LSTM" else ():
            name = node.input[place]
            if name in taken:
                node.input[place] = f"{name}_{number}"
                model.graph.initializer.add().CopyFrom(weights[name])
                model.graph.initializer[-1].name = node.input[place]
            taken.add(name)


def _share(model: ModelProto) -> None:
    """Merge equal constants."""
    from onnx import numpy_helper

    firsts: dict[tuple, str] = {}
    kept, names = [], {}
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        names[tensor.name] = firsts.setdefault((value.dtype, value.shape, value.tobytes()), tensor.name)
        if names[tensor.name] == tensor.name:
            kept.append(tensor)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
