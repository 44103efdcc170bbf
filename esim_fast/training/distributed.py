"""Training one model in several processes, started by torchrun."""

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, distributed


class Worker(NamedTuple):
    """This process's rank among the processes that train together."""

    rank: int = 0
    count: int = 1  # type: ignore[assignment]  # hides tuple.count

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and messages."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum ``values`` over all workers, in place and in every worker."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Collect every worker's ``value``, in every worker."""
        values = [value]
        if self.count > 1:
            values *= self.count
            distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Blocks until all workers have called it."""
        if self.count > 1:
            distributed.barrier()


ALONE = Worker()


def add_gradients(weights: Iterable[Tensor]) -> None:
    """Add up the weights' gradients over all workers with a single message; they become views of one tensor."""
    # Sizes that are no multiple of four come last, so that the others stay aligned to 16 bytes, for vector loads.
    found = sorted((weight for weight in weights if weight.grad is not None), key=lambda weight: weight.numel() % 4 > 0)
    flat = torch.cat([cast(Tensor, weight.grad).flatten() for weight in found])
    distributed.all_reduce(flat)
    for weight, part in zip(found, flat.split([weight.numel() for weight in found]), strict=True):
        weight.grad = part.view_as(weight)


def this_worker() -> Worker:
    """This process's place in the default process group, or ``ALONE`` without one."""
    if distributed.is_available() and distributed.is_initialized():
        return Worker(distributed.get_rank(), distributed.get_world_size())
    return ALONE


def started_by_torchrun() -> bool:
    """Whether torchrun started this process together with others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def lost_connection(error: Exception) -> bool:
    """Whether ``error`` only reports that another process ended, which has printed its own reason."""
    gloo = isinstance(error, RuntimeError) and "gloo" in str(error) and "onnection" in str(error)
    return started_by_torchrun() and (gloo or isinstance(error, distributed.DistError))


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the process group if torchrun started this process: NCCL with one GPU per process, otherwise Gloo.

    Yields:
        The device of this process.

    Raises:
        ValueError: there are more processes than GPUs.
    """
    if not started_by_torchrun():
        yield device
        return
    if device.type == "cuda":
        place, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if place >= gpus:
            raise ValueError(
                f"process {place + 1} on this machine finds {gpus} GPUs: start no more processes than that"
            )
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    on_gpu = device.type == "cuda"
    distributed.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    yield device
    # Skipped after an error: the others may be stuck waiting, and torchrun ends them once this process exits.
    gc.collect()  # DistributedDataParallel holds the group in a reference cycle
    distributed.barrier()
    distributed.destroy_process_group()
