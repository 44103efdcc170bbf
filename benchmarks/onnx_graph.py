"""The whole ESIM in ONNX Runtime on a CPU, as a graph of ONNX's own operators, in the form that is fastest there.

Its threads spin within a call, without which one pair takes twice as long, and not after it, which would slow others.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor, nn

from benchmarks.corpus import PairBatch

INPUTS = {"p": ["B", "Lp"], "h": ["B", "Lh"], "p_lengths": ["B"], "h_lengths": ["B"]}
_F = "infercomposition.composition.F"


def onnx_session(net: nn.Module, int8: bool = False) -> Callable[[PairBatch], Tensor]:
    """What gives the logits of a batch on the CPU, with the weights that ``net`` has now; or with LSTMs and products
    quantized by ONNX Runtime's own tool, with one scale for a matrix: it has no LSTM with more."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    content = (_quantized if int8 else ModelProto.SerializeToString)(onnx_model(net))
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])

    def logits(batch: PairBatch) -> Tensor:
        return torch.from_numpy(session.run(None, {name: getattr(batch, name).numpy() for name in INPUTS})[0])

    return logits


def _quantized(model: ModelProto) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        quantize_dynamic(model, path, op_types_to_quantize=["LSTM", "MatMul"])
        return path.read_bytes()


def onnx_model(net: nn.Module) -> ModelProto:
    """The notebook's variant, from ``esim_fast.ESIM(variant="notebook")`` or a peer of baselines.py, on the CPU."""
    weights = {name: weight.detach().numpy() for name, weight in net.state_dict().items()}
    nodes, constants = [], []

    def node(op: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{op}_{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def constant(value: Any, dtype: type = np.int64) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), f"constant_{len(constants)}"))
        return constants[-1].name

    def linear(x: str, name: str) -> str:
        weight, bias = (constant(weights[f"{name}.{part}"].T, np.float32) for part in ("weight", "bias"))
        return node("Add", node("MatMul", x, weight), bias)

    def bilstm(name: str) -> Callable[[str, str], str]:
        """``x [L, B, D]`` with ``lengths [B]`` to ``[L, 2, B, H]``, zero at padding."""
        size = weights[f"{name}.weight_hh_l0"].shape[1]

        def gates(part: str) -> np.ndarray:  # from input, forget, cell, output to ONNX's input, output, forget, cell
            return np.concatenate([np.split(weights[f"{name}.{part}"], 4)[gate] for gate in (0, 3, 1, 2)])

        def both_ways(*parts: str) -> str:
            ways = [np.concatenate([gates(f"{part}_l0{way}") for part in parts]) for way in ("", "_reverse")]
            return constant(ways, np.float32)

        parameters = both_ways("weight_ih"), both_ways("weight_hh"), both_ways("bias_ih", "bias_hh")
        return lambda x, lengths: node("LSTM", x, *parameters, lengths, hidden_size=size, direction="bidirectional")

    # x - y is linear: its weights join those of x and y, and the projection is of 6H, not 8H.
    of_x, of_y, of_difference, of_product = np.split(weights[f"{_F}.weight"], 4, axis=1)
    weights[f"{_F}.weight"] = np.concatenate([of_x + of_difference, of_y - of_difference, of_product], axis=1)
    embedding, outside = constant(weights["embedding.weight"], np.float32), constant(-1e7, np.float32)
    encode, compose = bilstm("encoder.lstm"), bilstm("infercomposition.composition.lstm")
    zero, one, first, second, third = map(constant, (0, 1, [0], [1], [2]))
    steps, within, encoded, pooled = {}, {}, {}, []
    for side in "ph":  # one call for both would have more padding
        steps[side] = node("Cast", f"{side}_lengths", to=TensorProto.INT32)
        places = node("Range", zero, node("Gather", node("Shape", side), one), one)
        within[side] = node("Less", places, node("Unsqueeze", f"{side}_lengths", second))  # [B, L]
        states = encode(node("Gather", embedding, node("Transpose", side, perm=[1, 0])), steps[side])
        encoded[side] = node("Reshape", node("Transpose", states, perm=[2, 0, 1, 3]), constant([0, 0, -1]))

    p, h = encoded.values()  # [B, Lp, 2H], [B, Lh, 2H]
    both = node("And", node("Unsqueeze", within["p"], third), node("Unsqueeze", within["h"], second))
    scores = node("Where", both, node("MatMul", p, node("Transpose", h, perm=[0, 2, 1])), outside)
    beta = node("Transpose", node("Softmax", scores, axis=1), perm=[0, 2, 1])
    aligned = {"p": node("MatMul", node("Softmax", scores, axis=2), h), "h": node("MatMul", beta, p)}
    for side, x in encoded.items():
        projected = linear(node("Concat", x, aligned[side], node("Mul", x, aligned[side]), axis=2), _F)
        states = compose(node("Transpose", projected, perm=[1, 0, 2]), steps[side])  # [L, 2, B, H]
        words = node("Cast", node("Unsqueeze", f"{side}_lengths", second), to=TensorProto.FLOAT)
        average = node("Div", node("ReduceSum", states, first, keepdims=0), words)
        mask = node("Unsqueeze", node("Transpose", within[side], perm=[1, 0]), constant([1, 3]))
        maximum = node("ReduceMax", node("Where", mask, states, outside), first, keepdims=0)
        v = node("Transpose", node("Concat", average, maximum, axis=0), perm=[1, 0, 2])  # [B, 4, H]
        pooled.append(node("Reshape", v, constant([0, -1])))
    logits = linear(node("Relu", linear(node("Concat", *pooled, axis=1), "linear.mlp.1")), "linear.mlp.3")

    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in INPUTS.items()]
    output = helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["B", len(weights["linear.mlp.3.bias"])])
    graph = helper.make_graph(nodes, "ESIM", inputs, [output], constants)
    model = helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid("", 18)])
    checker.check_model(model, full_check=True)
    return model
