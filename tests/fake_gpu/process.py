"""A process in which torch behaves as if it had CUDA and a GPU; tensors are fake, which means without values.

Import this before esim_fast, with the library that ``guard.cpp`` is compiled to in ``LD_PRELOAD``.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

torch.version.cuda = "13.0"
torch.cuda.get_device_capability = lambda device=None: (9, 0)
# Without these two, autocast and GradScaler turn themselves off.
torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda including_emulation=True: True

from esim_fast.ops import backends  # noqa: E402 (only now it defines the operators for GPUs)

backends._CUDA_ARCHITECTURES = ("9.0",)  # as if the pooling kernels had been built

GPU = torch.device("cuda:0")
FAKE = FakeTensorMode(allow_non_fake_inputs=True)
COPIES = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default


class OnTheGPU(TorchDispatchMode):
    """Records operators, and refuses those that move values between the GPU and the CPU, in either direction.

    Reads such as ``item()``, and results whose shape depends on values, are refused by the fake tensors themselves.

    Attributes:
        calls: name and arguments of each operator, with the shape, strides, dtype and device of each tensor.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        given, made = (
            [x for x in tree_leaves(part) if isinstance(x, torch.Tensor)] for part in ((args, kwargs), result)
        )
        # A scalar on the CPU is passed to a kernel by value, unless it is copied.
        by_value = operator not in COPIES
        places = {x.device.type for x in given if x.dim() or x.device.type != "cpu" or not by_value}
        if len(places | {x.device.type for x in made}) > 1:
            raise RuntimeError(f"{operator} moves values between the CPU and the GPU")
        if operator.namespace not in ("prim", "profiler"):
            self.calls.append((str(operator), tree_map(_described, (args, kwargs or {}))))
        return result


def _described(x):
    return (tuple(x.shape), x.stride(), str(x.dtype), x.device.type) if isinstance(x, torch.Tensor) else x
