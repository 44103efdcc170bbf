"""Backward passes that are kernels: a second derivative must raise, and not be silently wrong."""

from collections.abc import Callable

import torch


def first_derivative(name: str, backward: Callable, *arguments):
    """``backward(*arguments)``, which refuses to be differentiated in the name of the op ``name``."""
    # Grad mode is on in a backward pass only if somebody wants to differentiate it.
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
