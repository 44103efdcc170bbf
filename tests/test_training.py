"""The training loop: it learns, keeps the best, repeats itself, and goes on to the bit after an interruption."""

import contextlib
import itertools
import random

import pytest
import torch

import esim_fast
from esim_fast import Classifier
from esim_fast.data import DataError, EncodedPairs, Vocabulary, batches
from esim_fast.training import Checkpoint, Recipe, accuracy, fit, training_step

WORDS = ["<unk>", "<pad>", *"abcdefgh"]


def pairs(count, seed):
    """Two words, then the same two in the same or in the other order: that is the label."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(low, low + 4, (count,), generator=generator) for low in (2, 6))
    premises = torch.stack([first, second], 1).tolist()
    labels = torch.randint(2, (count,), generator=generator).tolist()
    return EncodedPairs(premises, [p[::-1] if label else p for p, label in zip(premises, labels, strict=True)], labels)


def new_model(seed=0):
    torch.manual_seed(seed)
    return Classifier(esim_fast.ESIM(16, 12, len(WORDS), 2, dropout=0.1), Vocabulary(WORDS), ["same", "swapped"])


def run(recipe, model=None, **options):
    model = model or new_model()
    history, bests = [], []
    options.setdefault("on_best", lambda: bests.append(len(history) + 1))
    best = fit(model, pairs(160, 1), pairs(80, 2), recipe, on_epoch=history.append, **options)
    return model, best, history, bests


def test_it_learns_and_keeps_the_best():
    model, best, history, bests = run(Recipe(epochs=12, learning_rate=1e-2, seed=1))
    accuracies = [metrics.dev_accuracy for metrics in history]
    assert [metrics.epoch for metrics in history] == list(range(1, 13))
    assert best == max(accuracies) > 0.95
    improved = [i + 1 for i, a in enumerate(accuracies) if a > max(accuracies[:i], default=-1)]
    assert bests == improved
    assert history[-1].train_loss < history[0].train_loss
    assert accuracies[-1] == accuracy(model, pairs(80, 2))


def test_the_learning_rate_halves_when_dev_stalls():
    _, _, history, _ = run(Recipe(epochs=4, learning_rate=1e-6))  # too small to change an answer
    assert [metrics.learning_rate for metrics in history] == [1e-6, 1e-6, 5e-7, 2.5e-7]


def test_gradients_are_clipped():
    model = new_model()
    before = [q.detach().clone() for q in model.net.parameters()]
    norms = []
    for parameter in model.net.parameters():
        parameter.register_hook(lambda gradient: gradient * 1e6)
    torch.optim.Adam.step = _spy(torch.optim.Adam.step, norms)
    try:
        run(Recipe(epochs=1, clip=0.5), model)
    finally:
        torch.optim.Adam.step = torch.optim.Adam.step.__wrapped__
    assert max(norms) == pytest.approx(0.5, rel=1e-3)
    assert any(not torch.equal(q, b) for q, b in zip(model.net.parameters(), before, strict=True))


def _spy(step, norms):
    def spied(optimiser, *arguments, **options):
        gradients = [q.grad for group in optimiser.param_groups for q in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(optimiser, *arguments, **options)

    spied.__wrapped__ = step
    return spied


def weights(model):
    return list(itertools.chain.from_iterable(q.flatten().tolist() for q in model.net.state_dict().values()))


def test_the_same_seed_gives_the_same_weights():
    first, second, other = (run(Recipe(epochs=2, seed=seed))[0] for seed in (3, 3, 4))
    assert weights(first) == weights(second)
    assert weights(first) != weights(other)


def test_resuming_gives_the_bits_of_an_uninterrupted_run(tmp_path):
    whole, best, history, _ = run(Recipe(epochs=4))
    run(Recipe(epochs=2), checkpoint_path=tmp_path / "last.pt", settings={"seed": 0})
    checkpoint = Checkpoint.load(tmp_path / "last.pt")
    assert (checkpoint.epoch, checkpoint.settings) == (2, {"seed": 0})
    torch.manual_seed(99)
    resumed, resumed_best, resumed_history, _ = run(Recipe(epochs=4), new_model(seed=7), resume_from=checkpoint)
    assert weights(resumed) == weights(whole)
    assert resumed_best == best
    assert [m.train_loss for m in resumed_history] == [m.train_loss for m in history[2:]]


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "bf16"), *(pytest.param("cuda", p, marks=pytest.mark.gpu) for p in ("fp32", "bf16", "fp16"))],
)
def test_devices_and_precisions(device, precision):
    model = new_model()
    model.net.to(device)
    _, best, _, _ = run(Recipe(epochs=8, learning_rate=1e-2, seed=1, precision=precision), model)
    assert best > 0.9


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_gpu():
    net = new_model().net.to("cuda").train()
    optimiser = torch.optim.Adam(net.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    first, second = batches(pairs(64, 1), 32, shuffle=False, pin_memory=True)
    training_step(net, first.to("cuda"), optimiser, scaler, Recipe())  # initialises libraries and state
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(net, second.to("cuda"), optimiser, scaler, Recipe())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_loss_that_is_not_finite_stops_the_run():
    model = new_model()
    model.net.linear.mlp[3].bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the training loss of epoch 1 is nan: try a lower learning rate"):
        run(Recipe(epochs=2), model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"seed": -1}, "seed must lie between 0 and"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, got 'fp8'"),
    ],
)
def test_recipes_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no checkpoint at all"])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"last\.pt: not a checkpoint of esim-fast"):
        Checkpoint.load(tmp_path / "last.pt")


def test_any_damage_to_a_checkpoint_is_one_clear_error(tmp_path):
    path = tmp_path / "last.pt"
    run(Recipe(epochs=1), checkpoint_path=path)
    whole, generator = path.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 20)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):  # and nothing else; damage can also hit what does not matter
            run(Recipe(epochs=1), resume_from=Checkpoint.load(path))


def test_a_checkpoint_of_another_network(tmp_path):
    run(Recipe(epochs=1), checkpoint_path=tmp_path / "last.pt")
    other = Classifier(esim_fast.ESIM(8, 12, len(WORDS), 2), Vocabulary(WORDS), ["same", "swapped"])
    with pytest.raises(DataError, match="the checkpoint does not fit this run: RuntimeError"):
        run(Recipe(epochs=2), other, resume_from=Checkpoint.load(tmp_path / "last.pt"))
