"""The directory of a run, and the files in it."""

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
      ``esim_fast.Classifier.from_pretrained``. ``config.json`` also records how it was trained.
    * ``last/``: the model of the last epoch, in the same files.
    * ``metrics.jsonl``: one JSON object per epoch.
    * ``curves.png``: loss and accuracy by epoch (in regression, correlation), if matplotlib is installed.
    * ``checkpoint/last.pt``: what the run needs to resume.

    Files are replaced atomically.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint" / "last.pt"
        self.metrics = self.path / "metrics.jsonl"
        self.last = self.path / "last"
        self.curves = self.path / "curves.png"

    def check(self, resume: bool) -> None:
        """Raise if the run would overwrite a trained model.

        Raises:
            NotADirectoryError: the path is a file.
            FileExistsError: the directory holds a model, and ``resume`` is not set or there is no checkpoint.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(self.path))
        if self.checkpoint.exists():
            if resume:
                return
            reason = "already holds a run: resume it (--resume), choose another directory, or delete this one"
            raise FileExistsError(errno.EEXIST, reason, str(self.path))
        if (self.path / WEIGHTS).exists():
            reason = "already holds a model but no checkpoint to resume from: choose another directory"
            raise FileExistsError(errno.EEXIST, reason, str(self.path))

    def open(self, resume: bool) -> Checkpoint | None:
        """Load the checkpoint, if there is one.

        Raises:
            DataError: the checkpoint is damaged.
            OSError: as in ``check``, or the checkpoint cannot be read.
        """
        self.check(resume)
        return Checkpoint.load(self.checkpoint) if self.checkpoint.exists() else None

    def begin(self, model: Classifier, history: Sequence[EpochMetrics], described: bool) -> None:
        """Write the metrics so far and, unless ``described``, the model's description."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if not described:
            model.save_description(self.path)
        self._write_metrics(history)

    def keep(self, model: Classifier, history: Sequence[EpochMetrics], best: bool) -> None:
        """Save an epoch's model and metrics."""
        if best:
            model.save_pretrained(self.path)
        model.save_pretrained(self.last)
        self._write_metrics(history)

    def _write_metrics(self, history: Sequence[EpochMetrics]) -> None:
        lines = "".join(json.dumps(metrics.as_dict(), allow_nan=False) + "\n" for metrics in history)
        replace_file(self.metrics, lambda partial: partial.write_text(lines, encoding="utf-8"))
