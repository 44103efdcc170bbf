"""Check that an exported model reproduces the network's logits in ONNX Runtime."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch

from ..data.vocabulary import PADDING_ID, UNKNOWN_ID
from ..model import ESIM
from ..packed import pack_pairs
from ..scoring import evaluating
from .graph import LENGTHS, SIDES

_ALLOWED, _ALLOWED_IN_INT8 = 1e-5, 0.1
_BATCHES = ((1, 1), (1, 8), (2, 0), (8, 3), (32, 24), (8, 100))  # pairs and padded length
_SILENT = 4  # ONNX Runtime's log level that does not repeat raised errors on stderr


def greatest_difference(content: bytes, net: ESIM, words: Sequence[str] | None, int8: bool) -> float:
    """The largest difference between the logits of an exported model and those of the network.

    Args:
        content: the ONNX file's content.
        net: the network.
        words: the vocabulary, if the model takes words.
        int8: whether the model is quantized.

    Raises:
        ValueError: the difference is larger than rounding or quantization explains.
    """
    import onnxruntime  # optional

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), _SILENT
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    random, found, batches = np.random.default_rng(0), [], []
    for pairs, longest in _BATCHES:
        ids = random.integers(net.config.vocab_size, size=(2, pairs, longest))
        lengths = random.integers(longest + 1, size=(2, pairs))
        if words is not None:
            ids[ids == PADDING_ID] = UNKNOWN_ID  # as a word of a sentence, "<pad>" is unknown
        given = ids if words is None else np.asarray(words, np.object_)[ids]
        found.append(session.run(["logits"], dict(zip((*SIDES, *LENGTHS), (*given, *lengths), strict=True)))[0])
        batches.append([torch.from_numpy(side) for side in (*ids, *lengths)])
    logits, expected = np.concatenate(found), _logits(net, batches)
    difference = np.abs(logits - expected).max()
    if int8:
        error, norm = np.linalg.norm(logits - expected), np.linalg.norm(expected)
        if not error <= _ALLOWED_IN_INT8 * norm:  # also true for NaN
            differ = f"differ from the network's by {error:.2g}, more than a tenth of their norm, {norm:.2g}"
            raise ValueError(f"in int8 its logits {differ}")
    elif not difference <= _ALLOWED * max(1, np.abs(expected).max()):
        raise ValueError(
            f"its logits differ from the network's by {difference:.1e}: hooks and custom layers are not exported"
        )
    return float(difference)


@torch.no_grad()
def _logits(net: ESIM, batches: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    """Logits of all batches, computed in float32 on the CPU, without dropout."""
    weight = net.embedding.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        net = deepcopy(net).float().cpu()
    with evaluating(net), torch.autocast("cpu", enabled=False):
        return torch.cat([net(pack_pairs(*batch)) for batch in batches]).numpy()
