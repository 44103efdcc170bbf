"""Captured steps read nothing from the GPU and copy nothing to it, except what they copy before the graph runs."""

import json

import pytest


@pytest.mark.parametrize(("precision", "accumulate"), [("fp32", 1), ("bf16", 2), ("fp16", 1)])
def test_a_capture_needs_nothing_from_the_host(run, precision, accumulate):
    statistics, operators = json.loads(run("captured", precision, str(accumulate))[-1])
    assert statistics == {"replayed": 4, "eager": 2, "captured": 1}
    assert operators == ["aten._fused_adamw_.tensor_lr", "esim_fast.embedding_gradient_triton.default"]
