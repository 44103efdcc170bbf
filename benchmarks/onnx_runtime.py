"""The whole ESIM in ONNX Runtime on a CPU, as ``esim-fast export`` writes it.

ONNX Runtime's threads spin during a call, without which one pair takes twice as long, but not after it, because that
would slow down the other variants.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from torch import Tensor

from benchmarks.corpus import PairBatch
from esim_fast import ESIM
from esim_fast.export import to_onnx

INPUTS = {"premise": "p", "hypothesis": "h", "premise_lengths": "p_lengths", "hypothesis_lengths": "h_lengths"}


def exported(net: ESIM, int8: bool) -> tuple[Callable[[PairBatch], Tensor], int]:
    """Export ``net``; return a function that computes a batch's logits, and the file's size in bytes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with TemporaryDirectory() as folder:
        file = to_onnx(net, Path(folder, "model.onnx"), int8=int8)
        session = onnxruntime.InferenceSession(file.path, options, ["CPUExecutionProvider"])

    def logits(batch: PairBatch) -> Tensor:
        return torch.from_numpy(
            session.run(None, {name: getattr(batch, key).numpy() for name, key in INPUTS.items()})[0]
        )

    return logits, file.size
