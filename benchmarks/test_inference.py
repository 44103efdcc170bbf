"""Inference with the whole ESIM against eager baselines, torch.compile, ONNX Runtime and small cross-encoders.

300 units, SNLI's vocabulary, batches of bucketed length. Ids are on the device already, and packed batches are packed
already.
"""

from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from benchmarks.baselines import EAGER
from benchmarks.corpus import make_batches
from benchmarks.measure import DEVICE, PRECISIONS, Variant
from benchmarks.models import BATCHES, COMPILED, LABELS, OURS, PEERS, Model, logits_of, models, timed, variants
from esim_fast.quantized import inference_precision, quantized_logits

ONNX, ONNX_INT8, OURS_INT8 = "ONNX Runtime", "ONNX Runtime, int8", "esim_fast, int8"
PAIRS = [1, 32, 128, *(pytest.param(pairs, marks=pytest.mark.gpu) for pairs in (512, 1024))]

# Small alternatives to ESIM. They are other models, so only time is compared.
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
CROSS_ENCODERS = {
    "MiniLM-L6-H384 (time alone)": (6, 384, 12, 1536),
    "TinyBERT-L4-H312 (time alone)": (4, 312, 12, 1200),
    "BERT-mini (time alone)": (4, 256, 4, 1024),
}
WORD_PIECES, FIRST_WORD, CLS, SEP = 30_522, 1000, 101, 102  # BERT's vocabulary; ids below 1000 are not words


def in_onnx_runtime(ours, precision):
    if precision not in ("fp32", "int8") or DEVICE.type != "cpu":
        return "compared in fp32 and int8 on a CPU only"

    @cache  # exported on first use, after the check has loaded its weights
    def file():
        from benchmarks.onnx_runtime import exported

        return exported(ours.net, int8=precision == "int8")

    return Model(ours.net, lambda batch: file()[0](batch), file_bytes=lambda: file()[1])


def in_int8(ours, pairs, precision):
    if precision != "fp32" or inference_precision("auto", DEVICE) != "int8":
        return dict.fromkeys((ONNX_INT8, OURS_INT8), "timed only in the fp32 group, on a CPU with VNNI")
    quantized = Model(ours.net, lambda batch: quantized_logits(ours.net, batch.pairs))
    found = {ONNX_INT8: in_onnx_runtime(ours, "int8"), OURS_INT8: quantized}
    return variants(found, pairs, "int8", training=False)


@pytest.mark.parametrize("variant", [*PEERS, *COMPILED, ONNX, *OURS, ONNX_INT8, OURS_INT8])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_inference(variant, pairs, precision, full, race):
    def contenders():
        found = models(precision, full)
        exact = found | {ONNX: in_onnx_runtime(found[OURS[-1]], precision)}
        quantized = in_int8(found[OURS[-1]], pairs, precision)
        return variants(exact, pairs, precision, training=False) | quantized

    race(variant, contenders)


def in_word_pieces(batch):
    """[CLS] premise [SEP] hypothesis [SEP] for each pair, with one word piece per word."""
    ids, types = [], []
    for p, h, p_length, h_length in zip(batch.p, batch.h, batch.p_lengths, batch.h_lengths, strict=True):
        p, h = (FIRST_WORD + side % (WORD_PIECES - FIRST_WORD) for side in (p[:p_length], h[:h_length]))
        ids.append(torch.cat([pad(pad(p, (1, 0), value=CLS), (0, 1), value=SEP), pad(h, (0, 1), value=SEP)]))
        types.append((torch.arange(len(ids[-1]), device=p.device) > p_length + 1).long())
    ids, types = (pad_sequence(rows, batch_first=True) for rows in (ids, types))
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": (ids != 0).long()}
    return SimpleNamespace(inputs=inputs, labels=batch.labels)


def cross_encoder(sizes, pairs, precision, training):
    if not find_spec("transformers"):
        return "needs transformers"
    from transformers import BertConfig, BertForSequenceClassification

    options = dict(zip(SIZES, sizes, strict=True)) | {"vocab_size": WORD_PIECES, "num_labels": LABELS}
    net = BertForSequenceClassification(BertConfig(**options, attn_implementation="sdpa")).to(DEVICE)
    model = Model(net, lambda batch: net(**batch.inputs).logits)
    batches = [in_word_pieces(batch.to(DEVICE)) for batch in make_batches(pairs, BATCHES)]

    @torch.no_grad()
    def check():
        logits = logits_of(model, batches[-1], precision)
        assert logits.shape == (pairs, LABELS)
        assert logits.isfinite().all()

    return Variant(timed(model, batches, precision, training), check)


@pytest.mark.parametrize("variant", [EAGER, OURS[-1], *CROSS_ENCODERS])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("which", ["inference", "training step"])
@pytest.mark.parametrize("pairs", [32, pytest.param(128, marks=pytest.mark.full)])
def test_cross_encoders(variant, which, precision, pairs, race):
    def contenders():
        training, found = which == "training step", models(precision, False)
        esim = {name: found[name] for name in (EAGER, OURS[-1])}
        others = {name: cross_encoder(sizes, pairs, precision, training) for name, sizes in CROSS_ENCODERS.items()}
        return variants(esim, pairs, precision, training) | others

    race(variant, contenders)
