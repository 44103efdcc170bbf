"""Error bounds for results in low precision.

Over a family of cases, the error against an fp64 reference (with norms over all cases) is at most twice that of
eager PyTorch in the same dtype. Single cases prove nothing, because an equally good variant loses many by chance.
Each element is also bounded by what the arithmetic allows, here for local inference and in the tests of simpler ops.
"""

import math

import torch

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def error_norm(results, exact):
    """Euclidean norm of the difference over all tensors, in fp64."""
    return sum(float((r.double() - e.double()).square().sum()) for r, e in zip(results, exact, strict=True)) ** 0.5


def assert_as_exact_as_eager(ours, eager, exact):
    our_error, eager_error = error_norm(ours, exact), error_norm(eager, exact)
    assert our_error <= 2 * eager_error, f"error {our_error:.3e}, eager PyTorch's {eager_error:.3e}"


def local_inference_bounds(a, b, grad_m_a, grad_m_b, dtype, product):
    """Error bounds of m_a, m_b and the gradients of a and b of one pair, when fp32 sums are rounded to ``dtype``.

    Every sum is bounded by the sum of its terms' magnitudes. The error of a score is a few times ``product`` of it (in
    theory one for each term, but roundings partly cancel). The relative error of a weight, an exponential of scores, is
    that of two scores. Results computed from weights have the error of two weights and a few roundings to ``dtype``,
    relative to their magnitude.

    Args:
        a, b: fp64 ``[La, D]`` and ``[Lb, D]``.
        grad_m_a, grad_m_b: fp64 ``[La, 4D]`` and ``[Lb, 4D]``.
        dtype: dtype of the results, and of the weights before they are multiplied.
        product: relative error of one rounded product and sum, fp32's epsilon or TF32's.
    """
    scores, magnitude = a @ b.T, a.abs() @ b.T.abs()
    off = 8 * product * float(magnitude.max()) if magnitude.numel() else 0.0
    relative = math.expm1(4 * off) + 8 * torch.finfo(dtype).eps + 8 * product
    floor = torch.finfo(dtype).smallest_normal  # below it, rounding is no longer relative
    alpha = scores.softmax(1) + floor if len(b) else scores
    beta = scores.softmax(0) + floor if len(a) else scores

    def enhanced(x, aligned):
        x = x.abs()
        return relative * torch.cat([0 * x, aligned, x + aligned, x * aligned], 1)

    a_aligned, b_aligned = alpha @ b.abs(), beta.T @ a.abs()
    bounds = [enhanced(a, a_aligned), enhanced(b, b_aligned)]

    (a1, a2, a3, a4), (b1, b2, b3, b4) = (g.abs().chunk(4, 1) for g in (grad_m_a, grad_m_b))
    grad_a_aligned, grad_b_aligned = a2 + a3 + a4 * a.abs() + floor, b2 + b3 + b4 * b.abs() + floor
    grad_alpha, grad_beta = grad_a_aligned @ b.T.abs(), a.abs() @ grad_b_aligned.T
    grad_scores = floor + alpha * (grad_alpha + (alpha * grad_alpha).sum(1, keepdim=True))
    grad_scores += beta * (grad_beta + (beta * grad_beta).sum(0, keepdim=True))
    grad_a = a1 + a3 + a4 * a_aligned + beta @ grad_b_aligned + grad_scores @ b.abs()
    grad_b = b1 + b3 + b4 * b_aligned + alpha.T @ grad_a_aligned + grad_scores.T @ a.abs()
    return tuple(bound + floor for bound in (*bounds, relative * grad_a, relative * grad_b))
