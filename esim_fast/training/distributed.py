"""Several processes that train one model: those that torchrun started."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed


class Worker(NamedTuple):
    """Which one this process is, of how many that train together."""

    rank: int = 0
    count: int = 1  # type: ignore[assignment]  # hides tuple.count, which nobody misses

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """``values`` summed over all workers, in each of them; in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The ``value`` of each worker, in each of them."""
        values = [value]
        if self.count > 1:
            values *= self.count
            distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Goes on when all workers have come here."""
        if self.count > 1:
            distributed.barrier()


ALONE = Worker()


def this_worker() -> Worker:
    """This process among those that share the default process group; alone, if there is none."""
    if distributed.is_available() and distributed.is_initialized():
        return Worker(distributed.get_rank(), distributed.get_world_size())
    return ALONE


def started_by_torchrun() -> bool:
    """Whether this process is to work together with others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def lost_connection(error: Exception) -> bool:
    """Whether ``error`` says that another of the processes is gone; that one has said why."""
    gloo = isinstance(error, RuntimeError) and "gloo" in str(error) and "onnection" in str(error)
    return started_by_torchrun() and (gloo or isinstance(error, distributed.DistError))


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, if it did: over NCCL with a GPU each, else over Gloo.

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
    # Not after an error: the others may wait for this process forever, and torchrun ends them once it is gone.
    gc.collect()  # DistributedDataParallel holds the group, and is part of a cycle
    distributed.barrier()
    distributed.destroy_process_group()
