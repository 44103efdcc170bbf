"""Other ESIM implementations: drop-in signatures, state dicts and checkpoints."""

from . import coetaur0

__all__ = ["coetaur0"]
