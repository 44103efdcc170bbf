"""The rule by which variants are found to be equal before they are timed.

In fp32 the logits, and the gradient of each parameter, differ from those in fp64 by at most 1e-5 of their norm. In TF32
and bf16 autocast, where roundings decide between maxima, logits alone are held, to 16 units in the last place.
"""

from collections.abc import Mapping

from torch import Tensor

TOLERANCE = {"fp32": 1e-5, "tf32": 16 * 2**-10, "bf16": 16 * 2**-7}


def relative_error(result: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of what is exact."""
    exact = exact.detach()
    return float((result.detach().double() - exact).norm() / exact.norm())


def difference(results: Mapping[str, Tensor], exact: Mapping[str, Tensor], tolerance: float) -> str | None:
    """Which of the results is off by more than ``tolerance``, and by how much; None if none is."""
    errors = {name: relative_error(results[name], value) for name, value in exact.items()}
    worst = max(errors, key=errors.get)
    # Not "greater than": NaN is an error, too.
    return None if errors[worst] <= tolerance else f"{worst} is off by {errors[worst]:.1e}, allowed {tolerance:.1e}"
