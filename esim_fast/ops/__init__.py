"""ESIM's operations with kernels, and a reference implementation in plain PyTorch."""

from .. import extension as extension  # must come first, because it registers the operators
from . import reference
from .backends import BACKENDS
from .bilstm import bilstm, bilstm_backends
from .cross_entropy import cross_entropy
from .dropout import dropout
from .local_inference import local_inference, local_inference_packed
from .masked_pool import masked_pool

__all__ = [
    "BACKENDS",
    "bilstm",
    "bilstm_backends",
    "cross_entropy",
    "dropout",
    "local_inference",
    "local_inference_packed",
    "masked_pool",
    "reference",
]
