"""The whole ESIM in ONNX Runtime on a CPU: a graph of ONNX's own operators, as one would write it to deploy the model.

It spins within a call and stops spinning after it: spinning on would slow whatever runs next in this process.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper
from torch import Tensor, nn

from benchmarks.corpus import PairBatch


def onnx_session(net: nn.Module) -> Callable[[PairBatch], Tensor]:
    """What gives the logits of a batch on the CPU, with the weights that ``net`` has now."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(onnx_model(net).SerializeToString(), options, ["CPUExecutionProvider"])

    def logits(batch: PairBatch) -> Tensor:
        sides = {"p": batch.p, "h": batch.h, "p_lengths": batch.p_lengths, "h_lengths": batch.h_lengths}
        return torch.from_numpy(session.run(None, {name: side.numpy() for name, side in sides.items()})[0])

    return logits


def onnx_model(net: nn.Module) -> ModelProto:
    """The notebook's variant: ``p [B, Lp]``, ``h [B, Lh]``, ``p_lengths [B]``, ``h_lengths [B]`` to ``logits``.

    Args:
        net: ``esim_fast.ESIM(variant="notebook")`` or a peer from baselines.py with the same mathematics.
    """
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

        def both_ways(*parts: str) -> str:
            ways = [[_reordered(weights[f"{name}.{part}_l0{way}"]) for part in parts] for way in ("", "_reverse")]
            return constant([np.concatenate(way) for way in ways], np.float32)

        parameters = both_ways("weight_ih"), both_ways("weight_hh"), both_ways("bias_ih", "bias_hh")
        size = weights[f"{name}.weight_hh_l0"].shape[1]
        return lambda x, lengths: node("LSTM", x, *parameters, lengths, hidden_size=size, direction="bidirectional")

    embedding = constant(weights["embedding.weight"], np.float32)
    encode, compose = bilstm("encoder.lstm"), bilstm("infercomposition.composition.lstm")
    zero, one, first, second, third = map(constant, (0, 1, [0], [1], [2]))
    rows, flat, outside = constant([0, 0, -1]), constant([0, -1]), constant(-1e7, np.float32)
    steps, within, encoded = {}, {}, {}
    for side in "ph":
        steps[side] = node("Cast", f"{side}_lengths", to=TensorProto.INT32)
        places = node("Range", zero, node("Gather", node("Shape", side), one), one)
        within[side] = node("Less", places, node("Unsqueeze", f"{side}_lengths", second))  # [B, L]
        x = node("Gather", embedding, node("Transpose", side, perm=[1, 0]))
        states = node("Transpose", encode(x, steps[side]), perm=[2, 0, 1, 3])
        encoded[side] = node("Reshape", states, rows)  # [B, L, 2H]

    p, h = encoded.values()
    both = node("And", node("Unsqueeze", within["p"], third), node("Unsqueeze", within["h"], second))
    scores = node("Where", both, node("MatMul", p, node("Transpose", h, perm=[0, 2, 1])), outside)
    beta = node("Transpose", node("Softmax", scores, axis=1), perm=[0, 2, 1])
    aligned = {"p": node("MatMul", node("Softmax", scores, axis=2), h), "h": node("MatMul", beta, p)}

    pooled = []
    for side, x in encoded.items():
        y = aligned[side]
        m = node("Concat", x, y, node("Sub", x, y), node("Mul", x, y), axis=2)
        projected = node("Transpose", linear(m, "infercomposition.composition.F"), perm=[1, 0, 2])
        states = compose(projected, steps[side])  # [L, 2, B, H]
        words = node("Cast", node("Unsqueeze", f"{side}_lengths", second), to=TensorProto.FLOAT)
        mask = node("Unsqueeze", node("Transpose", within[side], perm=[1, 0]), constant([1, 3]))
        average = node("Div", node("ReduceSum", states, first, keepdims=0), words)
        maximum = node("ReduceMax", node("Where", mask, states, outside), first, keepdims=0)  # [2, B, H]
        pooled += [node("Reshape", node("Transpose", v, perm=[1, 0, 2]), flat) for v in (average, maximum)]
    hidden = node("Relu", linear(node("Concat", *pooled, axis=1), "linear.mlp.1"))
    logits = linear(hidden, "linear.mlp.3")

    inputs = {"p": ["B", "Lp"], "h": ["B", "Lh"], "p_lengths": ["B"], "h_lengths": ["B"]}
    ins = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()]
    out = helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["B", len(weights["linear.mlp.3.bias"])])
    graph = helper.make_graph(nodes, "ESIM", ins, [out], constants)
    model = helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid("", 18)])
    checker.check_model(model, full_check=True)
    return model


def _reordered(gates: np.ndarray) -> np.ndarray:
    """PyTorch's gates, input, forget, cell and output, in ONNX's order: input, output, forget, cell."""
    input, forget, cell, output = np.split(gates, 4)
    return np.concatenate([input, output, forget, cell])
