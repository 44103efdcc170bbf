"""ESIM, the enhanced LSTM for sentence pairs, with its expensive parts written as kernels.

Submodules are imported on first use, because torch takes seconds to import. The first use of any of them, or
``import esim_fast.ops``, registers the operators under ``torch.ops.esim_fast``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import compat, export, ops, streaming
    from .classifier import Classifier
    from .extension import build_info
    from .layers import LocalInference, Pooling
    from .model import ESIM
    from .packed import PackedPairs, Rows, pack_pairs

    __version__: str
else:
    from importlib import import_module

    _MODULES = (
        *("classifier", "compat", "config", "data", "errors", "explanation", "export", "extension", "files"),
        *("layers", "model", "ops", "packed", "state_dicts", "streaming"),
    )
    _HOMES = {
        **{module: module for module in _MODULES},
        "Classifier": "classifier",
        "build_info": "extension",
        "LocalInference": "layers",
        "Pooling": "layers",
        "ESIM": "model",
        "PackedPairs": "packed",
        "Rows": "packed",
        "pack_pairs": "packed",
    }

    def __getattr__(name):  # noqa: ANN001
        if name == "__version__":
            from importlib.metadata import version  # not above, where it would be a name of this package

            return version("esim_fast")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f".{_HOMES[name]}", __name__)
        if name not in globals():  # importing a submodule already sets its name
            globals()[name] = getattr(module, name)
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *_HOMES, "__version__"})


__all__ = [
    "ESIM",
    "Classifier",
    "LocalInference",
    "PackedPairs",
    "Pooling",
    "Rows",
    "build_info",
    "compat",
    "export",
    "ops",
    "pack_pairs",
    "streaming",
]
