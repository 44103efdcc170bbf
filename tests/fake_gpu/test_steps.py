"""Steps of pairs with a capacity read nothing from the GPU, and are the same for all batches of a capacity."""

import json

import pytest


@pytest.mark.parametrize(
    ("precision", "dropout", "dtype"),
    [
        ("fp32", "plain", "torch.float32"),
        ("bf16", "plain", "torch.bfloat16"),
        ("fp16", "variational", "torch.float16"),
    ],
)
def test_a_capacity_fixes_everything(run, precision, dropout, dtype):
    """Also shows that nothing is read: the process raises an error otherwise, as the next test shows."""
    kernels, same, rows, pairs, longest = map(json.loads, run("steps", "compare", precision, dropout))
    names = ["bilstm_triton", "local_inference_packed_triton", "masked_pool"]
    expected = [[f"esim_fast.{name}{end}.default", dtype] for name in names for end in ("", "_backward")]
    expected += [["esim_fast.bilstm_triton_weights.default", "torch.float32"]]
    # Dropout also takes the word vectors, in fp32, and the gradient of the loss is in fp32.
    expected += [["esim_fast.dropout_triton.default", kind] for kind in {dtype, "torch.float32"}]
    expected += [["esim_fast.cross_entropy_triton.default", dtype]]
    expected += [["esim_fast.cross_entropy_triton_backward.default", "torch.float32"]]
    expected += [["esim_fast.embedding_gradient_triton.default", "torch.float32"]]
    assert kernels == sorted(expected)
    assert same == 30
    # For B pairs and longest sentences of L words, there are 4B + L + 2 addresses, and 2B + L + 2 without the lengths.
    # Variational dropout takes the last sentence, 2B - 1, and L + 1 steps.
    assert rows == [[1000, 1100], [1001, 1101]]
    sentence, steps = ([[63, 79]], [[17, 33]]) if dropout == "variational" else ([], [])
    assert pairs == sorted([[1 / 32, 1 / 40], [32, 40], [64, 80], *sentence, [82, 98], [146, 178]])
    assert longest == sorted([[16, 32], *steps, [18, 34], [82, 98], [146, 162]])


def test_every_mistake_is_noticed(run):
    noticed = dict(line.split(": ") for line in run("steps", "mistakes", "bf16", "plain"))
    assert len(noticed) == 10
    assert set(noticed.values()) == {"DataDependentOutputException", "DynamicOutputShapeException", "RuntimeError"}
