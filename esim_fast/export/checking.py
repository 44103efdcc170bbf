"""Whether a model gives the network's logits in ONNX Runtime."""

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
_BATCHES = ((1, 1), (1, 8), (2, 0), (8, 3), (32, 24), (8, 100))  # pairs, and places for words
_SILENT = 4  # of ONNX Runtime's levels: errors are raised, and not written on stderr as well


def greatest_difference(content: bytes, net: ESIM, words: Sequence[str] | None, int8: bool) -> float:
    """The greatest difference between the logits of a model, as a file holds it, and those of the network.

    Args:
        words: the vocabulary, where the model takes words.

    Raises:
        ValueError: the difference is more than rounding, or that of int8, explains.
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
            ids[ids == PADDING_ID] = UNKNOWN_ID  # <pad> is no word of a text
        given = ids if words is None else np.asarray(words, np.object_)[ids]
        found.append(session.run(["logits"], dict(zip((*SIDES, *LENGTHS), (*given, *lengths), strict=True)))[0])
        batches.append([torch.from_numpy(side) for side in (*ids, *lengths)])
    logits, expected = np.concatenate(found), _logits(net, batches)
    difference = np.abs(logits - expected).max()
    if int8:
        error, norm = np.linalg.norm(logits - expected), np.linalg.norm(expected)
        if not error <= _ALLOWED_IN_INT8 * norm:  # NaN is not
            differ = f"differ from the network's by {error:.2g}, more than a tenth of their norm, {norm:.2g}"
            raise ValueError(f"in int8 its logits {differ}")
    elif not difference <= _ALLOWED * max(1, np.abs(expected).max()):
        raise ValueError(
            f"its logits differ from the network's by {difference:.1e}: hooks and layers of your own are not exported"
        )
    return float(difference)


@torch.no_grad()
def _logits(net: ESIM, batches: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    """Of all batches, in float32 on the CPU and without dropout."""
    weight = net.embedding.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        net = deepcopy(net).float().cpu()
    with evaluating(net), torch.autocast("cpu", enabled=False):
        return torch.cat([net(pack_pairs(*batch)) for batch in batches]).numpy()
