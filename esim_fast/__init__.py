"""ESIM, the enhanced LSTM for sentence pairs, with its expensive parts written as kernels."""

from . import compat, ops, streaming
from .classifier import Classifier
from .extension import build_info
from .layers import LocalInference, Pooling
from .model import ESIM
from .packed import PackedPairs, Rows, pack_pairs

__all__ = [
    "ESIM",
    "Classifier",
    "LocalInference",
    "PackedPairs",
    "Pooling",
    "Rows",
    "build_info",
    "compat",
    "ops",
    "pack_pairs",
    "streaming",
]
