"""The operations of ESIM that have kernels, and their reference in plain PyTorch."""

from . import reference
from .local_inference import local_inference
from .masked_pool import masked_pool

__all__ = ["local_inference", "masked_pool", "reference"]
