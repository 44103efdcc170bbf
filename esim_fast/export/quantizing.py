"""A model in int8, by ONNX Runtime's own quantizer."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

_WEIGHTS = (1, 2)  # which inputs of an LSTM are matrices


def quantized(model: ModelProto) -> ModelProto:
    """LSTMs and products by weights in int8, with a scale for each of their outputs; what they meet is quantized anew
    in every call. ``model`` is used up.

    Weights take seven bits: processors without VNNI add two products in 16 bits, which those of eight bits overflow.
    """
    import onnx  # both are optional
    from onnxruntime.quantization import quantize_dynamic

    _unshare(model)
    # Without this mark it asks, on stderr, for preparations that are made whenever a model is loaded.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        quantize_dynamic(model, path, op_types_to_quantize=["LSTM", "MatMul"], per_channel=True, reduce_range=True)
        found = onnx.load(path)
    _share(found)
    return found


def _unshare(model: ModelProto) -> None:
    """Gives each LSTM weights of its own: the quantizer transposes weights once more for each LSTM that has them."""
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
    """Keeps one of all constants that hold the same."""
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
