"""Gradient clipping together with the optimizer's update."""

from typing import cast

import torch
from torch import Tensor, nn


def clipped_update(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, largest: float, fused: bool
) -> Tensor:
    """Scale down gradients whose norm is above ``largest``, then update the parameters.

    Args:
        optimizer: updates the parameters.
        scaler: scaled the loss under fp16; a disabled one otherwise.
        largest: the largest norm.
        fused: whether the optimizer's kernel scales the gradients as it reads them, and writes them back if it does not
            skip the step. Otherwise they are scaled before, which is one more pass over all of them, under fp16 two.
            For optimizers made with ``fused=True``.

    Returns:
        The norm before clipping.

    Raises:
        ValueError: the optimizer's kernel does not scale gradients.
    """
    if fused and not getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ValueError(f"fused_clipping: expected an optimizer made with fused=True, got {type(optimizer).__name__}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if fused:
        update = _FusedUpdate(optimizer, nn.utils.get_total_norm(gradients), largest)
        scaler.step(cast(torch.optim.Optimizer, update))
        norm = update.norm
    else:
        scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm(gradients)
        # A CPU skips multiplying by one. On a GPU, reading the norm would synchronize.
        if norm.device.type != "cpu" or not norm <= largest:
            nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        scaler.step(optimizer)
    scaler.update()
    return norm


class _FusedUpdate:
    """A fused optimizer as a GradScaler sees it: its only gradient is the norm of all gradients.

    The norm is finite only if all of them are, so the scaler need not look at the others. The scaler does not unscale
    the gradients of such an optimizer, but sets two attributes before it calls ``step``.

    Attributes:
        grad_scale: what gradients must be divided by; the scaler sets it.
        found_inf: 1 if the step must be skipped, otherwise 0; the scaler sets it.
        norm: the norm before clipping, without the scaler's scale; ``step`` sets it.
    """

    _step_supports_amp_scaling = True
    grad_scale: Tensor | int = 1
    found_inf: Tensor | None = None
    norm: Tensor

    def __init__(self, optimizer: torch.optim.Optimizer, scaled_norm: Tensor, largest: float) -> None:
        self._optimizer, self._scaled_norm, self._largest = optimizer, scaled_norm, largest
        seen = torch.zeros_like(scaled_norm)
        seen.grad = scaled_norm
        self.param_groups = [{"params": [seen]}]

    def step(self) -> None:
        """Update the parameters in one pass over the gradients."""
        optimizer, self.norm = self._optimizer, self._scaled_norm / self.grad_scale
        divisor = ((self.norm + 1e-6) / self._largest).clamp(min=1)  # as in clip_grads_with_norm_
        optimizer.grad_scale = self.grad_scale * divisor  # type: ignore[attr-defined]
        optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
