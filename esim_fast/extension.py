"""Load the compiled extension next to this file; it registers ``torch.ops.esim_fast``."""

import sys
from pathlib import Path
from typing import Any

import torch


def _load() -> None:
    # In a clone, the local sources shadow the installed package, so its extension is looked up on sys.path.
    directories = [Path(__file__).parent, *(Path(entry, "esim_fast") for entry in sys.path)]
    library = next((found for directory in directories for found in sorted(directory.glob("_C*.so"))), None)
    if library is None:
        raise ImportError(
            f"esim_fast's compiled extension is neither in {directories[0]} nor installed: "
            "run `pip install .` in the source tree"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(f"{library} cannot be loaded by torch {torch.__version__}: {error}") from error


_load()


def build_info() -> dict[str, Any]:
    """Return how the extension was built.

    Returns:
        A dict with ``cpu`` (always True), ``cuda`` (compute capabilities that its CUDA code was compiled for, such as
        ``["8.0", "9.0+PTX"]``; empty in a CPU-only build), ``torch_target`` (the oldest torch that can load it),
        ``built_with_torch`` and ``compiler``.
    """
    facts = dict(line.split("=", 1) for line in torch.ops.esim_fast.build_info().splitlines())
    cuda = [architecture for architecture in facts.pop("cuda_architectures").split(",") if architecture]
    return {"cpu": True, "cuda": cuda, **facts}
