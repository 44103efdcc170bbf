"""The directory of a run: what it leaves behind."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..classifier import Classifier
from ..files import replace_file
from ..pretrained import WEIGHTS
from .checkpoint import Checkpoint
from .progress import EpochMetrics


class RunDirectory:
    """The directory of a run.

    * ``model.safetensors``, ``config.json``, ``vocabulary.txt``, ``labels.json``: the best model so far, for
      :meth:`esim_fast.Classifier.from_pretrained`; ``config.json`` also says how it is trained;
    * ``last/``: the model of the last epoch, the same files;
    * ``metrics.jsonl``: an object for each epoch;
    * ``curves.png``: loss and accuracy (of scores, correlation) by epoch, where matplotlib is installed;
    * ``checkpoint/last.pt``: what the run needs to go on.

    Each file is replaced only by a complete one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint" / "last.pt"
        self.metrics = self.path / "metrics.jsonl"
        self.last = self.path / "last"
        self.curves = self.path / "curves.png"

    def check(self, resume: bool) -> None:
        """Nobody's trained model is overwritten unasked.

        Raises:
            NotADirectoryError: it is something else.
            FileExistsError: it holds a model, and ``resume`` is not set or there is no checkpoint to go on from.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(self.path))
        if self.checkpoint.exists():
            if resume:
                return
            reason = "already holds a run: resume it (--resume), choose another directory, or delete this one"
            raise FileExistsError(errno.EEXIST, reason, str(self.path))
        if (self.path / WEIGHTS).exists():
            reason = "already holds a model, and no checkpoint to go on from: choose another directory"
            raise FileExistsError(errno.EEXIST, reason, str(self.path))

    def open(self, resume: bool) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one; raises what :meth:`check` raises, and DataError."""
        self.check(resume)
        return Checkpoint.load(self.checkpoint) if self.checkpoint.exists() else None

    def begin(self, model: Classifier, history: Sequence[EpochMetrics], described: bool) -> None:
        """Shows that a run is going on here, with what it measured so far; what is ``described`` already stays so."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if not described:
            model.save_description(self.path)
        self._write_metrics(history)

    def keep(self, model: Classifier, history: Sequence[EpochMetrics], best: bool) -> None:
        """Keeps what an epoch has brought."""
        if best:
            model.save_pretrained(self.path)
        model.save_pretrained(self.last)
        self._write_metrics(history)

    def _write_metrics(self, history: Sequence[EpochMetrics]) -> None:
        lines = "".join(json.dumps(metrics.as_dict(), allow_nan=False) + "\n" for metrics in history)
        replace_file(self.metrics, lambda partial: partial.write_text(lines, encoding="utf-8"))
