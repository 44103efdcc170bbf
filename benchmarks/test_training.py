"""A training step of the whole ESIM: esim_fast against the notebook's and coetaur0's, eager and compiled.

300 units, SNLI's vocabulary with its dense embedding gradient, dropout, the same fused Adam for all; batches of
bucketed length.
"""

import pytest

from benchmarks.measure import PRECISIONS
from benchmarks.models import NAMES, models, variants

LARGER = [("SNLI", 128), ("SNLI", 512), ("SNLI", 1024), ("MultiNLI", 32)]
SHAPES = [("SNLI", 32), *(pytest.param(*shape, marks=pytest.mark.full) for shape in LARGER)]


@pytest.mark.parametrize("variant", NAMES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("kind", "pairs"), SHAPES)
def test_training(variant, kind, pairs, precision, full, race):
    compiled = full or (kind, pairs) == SHAPES[0]
    race(variant, lambda: variants(models(precision, compiled), kind, pairs, precision, training=True))
