"""The operations of ESIM that have kernels, and their reference in plain PyTorch."""

from .. import extension as extension  # first: it registers the operators
from . import reference
from .bilstm import bilstm
from .local_inference import local_inference
from .masked_pool import masked_pool

__all__ = ["bilstm", "local_inference", "masked_pool", "reference"]
