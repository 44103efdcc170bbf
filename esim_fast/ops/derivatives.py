"""Custom autograd functions: applied with little overhead, and differentiable once.

Backward passes are kernels, so a second derivative must raise an error instead of being silently wrong.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .checks import transforming


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Call ``function.apply(*arguments)`` faster; ``forward`` takes no context, as torch.func requires.

    PyTorch inspects the signature of such a function in every call, which takes longer than a kernel on a small batch,
    and it creates a node even if nothing is differentiated.
    """
    if torch.compiler.is_compiling() or transforming():
        return function.apply(*arguments)
    if recorded(*arguments):
        return _with_context(function).apply(*arguments)
    return function.forward(*arguments)


def recorded(*arguments: Any) -> bool:
    """Whether autograd records operations on these arguments."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in arguments)


@cache
def _with_context(function: Any) -> type[torch.autograd.Function]:
    """Return the function with a context in ``forward``, the form that torch.func does not support."""

    def forward(ctx, *arguments):
        output = function.forward(*arguments)
        function.setup_context(ctx, arguments, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), methods)


def first_derivative(name: str, backward: Callable, *arguments: Any) -> Any:
    """Call ``backward(*arguments)``; differentiating the result raises an error that names the op ``name``."""
    # Grad mode is on in a backward pass only with create_graph=True.
    if torch.is_grad_enabled():
        return _FirstDerivative.apply(name, backward, *arguments)
    return backward(*arguments)


class _FirstDerivative(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(name, backward, *arguments):
        return backward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(f"esim_fast.ops.{ctx.name} has no second derivative: use backend='reference' for it")
