"""Captured forward passes read nothing from the GPU, and are the same for all batches of a capacity."""

import json

import pytest


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", "torch.float32"), ("bf16", "torch.bfloat16"), ("fp16", "torch.float16")]
)
def test_a_capacity_fixes_everything(run, precision, dtype):
    """Also shows that nothing is read: the process raises an error otherwise (test_steps.py)."""
    kernels, same, others, counts = map(json.loads, run("inference", precision))
    names = ["bilstm_triton", "local_inference_packed_triton", "masked_pool"]
    weights = ["esim_fast.bilstm_triton_weights.default", "torch.float32"]
    assert kernels == sorted([weights, *([f"esim_fast.{name}.default", dtype] for name in names)])
    assert same == 30
    # B pairs, 2B sentences, 2B + 18 and 4B + 18 addresses (the longest sentence has room for 16 words), and 8B rows.
    assert others == [[32, 64], [64, 128], [82, 146], [146, 274], [256, 512]]
    assert counts == {"replayed": 32, "eager": 64, "captured": 32}
