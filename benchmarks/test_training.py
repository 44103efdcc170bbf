"""A training step of the whole ESIM: esim_fast against the notebook's and coetaur0's, eager and compiled.

300 units, SNLI's vocabulary with a dense gradient, dropout, batches of bucketed length, and the same fused Adam.
"""

import pytest

from benchmarks.measure import PRECISIONS
from benchmarks.models import NAMES, models, variants

PAIRS = [
    32,
    pytest.param(128, marks=pytest.mark.full),
    *(pytest.param(pairs, marks=pytest.mark.gpu) for pairs in (512, 1024)),
]


@pytest.mark.parametrize("variant", NAMES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_training(variant, pairs, precision, full, race):
    race(variant, lambda: variants(models(precision, full or pairs == 32), pairs, precision, training=True))
