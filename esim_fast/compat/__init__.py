"""Other people's ESIMs: their signatures, their state dicts, their checkpoints."""

from . import coetaur0

__all__ = ["coetaur0"]
