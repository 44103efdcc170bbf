"""Forward passes as CUDA graphs, for inference: the host copies a batch to the GPU and launches all kernels at once."""

import threading
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from . import graphs
from .config import autocast, check_precision
from .graphs import Inbox, Replayable, Statistics
from .model import ESIM
from .ops.checks import autocast_dtype
from .packed import PackedPairs
from .traps import warn

_MOST_GRAPHS = 24
_MOST_ROWS, _MOST_PAIRS = 2**15, 2**12  # of a batch in a graph
_LONGEST = 64  # words of a sentence in a graph; batches with longer ones are rare
_ROWS, _PAIRS = 16, 4  # capacities are multiples of these


class CapturedForward:
    """A network's forward pass that captures CUDA graphs and replays them. It has not run on a GPU yet.

        forward = CapturedForward(net.eval(), "bf16")
        for batch in batches(pairs, 256, shuffle=False):
            logits = forward(batch.pairs)

    Each batch is padded to its capacity; one of more than 32 pairs and 128 words grows by at most 25 %. A capacity's
    first two batches run eagerly, then a graph is captured, up to 24 graphs; batches of further capacities stay eager.
    Batches with a sentence of more than 64 words, with more than 4,096 pairs or with more than 32,768 words run eagerly
    and unpadded.
    So does everything while the network has hooks, replaced forward passes or a compiled call, runs on other kernels
    than Triton's and CUDA's, or autocast is on around the call; a warning says why.

    Graphs read the parameters, so changes in place take effect. They are dropped when parameters have been moved or
    converted, or the network's mode has changed. They keep settings of torch, such as TF32, from when they were
    captured. Several threads may use one object; their batches run one after another.

    Args:
        net: the network, on an NVIDIA GPU.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.

    Attributes:
        statistics: counts of ``replayed`` and ``eager`` forward passes and of ``captured`` graphs so far.

    Raises:
        ValueError: the precision is unknown, or the network is not on an NVIDIA GPU.
    """

    def __init__(self, net: ESIM, precision: str = "fp32") -> None:
        check_precision(precision, net.device)
        self.net, self.precision, self.statistics = net, precision, Statistics()
        self._lock = threading.RLock()  # another thread must not change the memory before the result has been read
        self._has_warned = False
        self._begin()

    def _begin(self) -> None:
        """Begin without graphs, for the network as it is now."""
        net = self.net
        self._captured_with = graphs.fixed_by_graphs(net)
        self._graphs = graphs.CUDAGraphs(net.device)
        self._obstacle_of_kernels = self._graphs.obstacle(net)
        self._inbox: Inbox | None = None
        with torch.inference_mode(False):  # memory that is made in this mode cannot be written to outside of it
            self._logits = torch.zeros(_MOST_PAIRS, net.config.num_labels, device=net.device)
        self._forwards: dict[tuple[int, ...], Replayable] = {}  # by capacity

    def __call__(self, pairs: PackedPairs) -> Tensor:
        """Compute the logits.

        Args:
            pairs: packed pairs without a capacity in the CPU's memory; they need not be pinned.

        Returns:
            Float32 ``[B, num_labels]`` on the CPU.
        """
        with self._lock, self._graphs.current(self.net.device), torch.inference_mode(False), torch.no_grad():
            if self._is_prevented() or not self._run(pairs):
                self.statistics.eager += 1
                with autocast(self.precision, self.net.device):
                    logits = self.net(pairs.to(self.net.device))
            else:
                logits = self._logits[: len(pairs)]
            return logits.to("cpu", torch.float32, copy=True)

    def _run(self, pairs: PackedPairs) -> bool:
        """Compute the logits in a capacity, if there is one that holds the pairs."""
        if max(pairs.longest) > _LONGEST or len(pairs) > _MOST_PAIRS or len(pairs.tokens) > _MOST_ROWS:
            return False
        padding_idx = self.net.config.padding_idx
        sizes = _rounded_up(len(pairs.tokens), _ROWS), _rounded_up(len(pairs), _PAIRS)
        padded = pairs.with_capacity(*sizes, padding_idx=padding_idx)
        capacity = *sizes, *padded.longest
        if self._inbox is None:
            largest = replace(pairs, longest=(_LONGEST, _LONGEST)).with_capacity(_MOST_ROWS, _MOST_PAIRS)
            slot = self._graphs.new_slot(graphs.offsets([largest.tokens, largest.addresses])[-1])
            self._inbox = Inbox([slot], self.net.device)
        tokens, addresses = self._inbox.receive([padded.tokens, padded.addresses])
        forward = self._forwards.get(capacity)
        if forward is None:
            received = replace(padded, tokens=tokens, addresses=addresses)
            compute = partial(_compute, self.net, self.precision, received, self._logits)
            forward = self._forwards[capacity] = Replayable(compute)
        if forward.replay is None and sum(one.replay is not None for one in self._forwards.values()) >= _MOST_GRAPHS:
            self.statistics.eager += 1
            forward.compute()
        else:
            forward.run(self._graphs.capture, self.statistics)
        return True

    def _is_prevented(self) -> bool:
        """Whether the forward pass cannot be captured now; warns the first time."""
        reason = self._obstacle()
        if reason is not None and not self._has_warned:
            warn(f"inference runs eagerly, not as CUDA graphs: {reason}")
            self._has_warned = True
        return reason is not None

    def _obstacle(self) -> str | None:
        if (reason := graphs.obstacle(self.net)) is not None:
            return reason
        if autocast_dtype(self.net.device) is not None:
            return "autocast is on, and keeps copies of parameters that a graph must not use"
        if self._captured_with != graphs.fixed_by_graphs(self.net):
            self._begin()
        return self._obstacle_of_kernels


def _compute(net: ESIM, precision: str, pairs: PackedPairs, logits: Tensor) -> None:
    """Write the logits of pairs with a capacity to memory that does not move."""
    with autocast(precision, net.device):
        logits[: len(pairs)].copy_(net(pairs))


def _rounded_up(size: int, unit: int) -> int:
    """Return the next multiple of ``unit``; above eight units, the next of four numbers per power of two."""
    unit = max(unit, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-max(1, size) // unit) * unit
