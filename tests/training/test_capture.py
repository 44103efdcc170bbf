"""Captured steps take the same steps as others. Without a GPU, a graph calls the captured function again, which finds
nothing new but what was copied to the memory that it reads."""

import copy
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

import esim_fast
from benchmarks.corpus import draw_pairs
from esim_fast import graphs as cuda_graphs
from esim_fast import layers
from esim_fast.data import EncodedPairs, batches
from esim_fast.graphs import CUDAGraphs, Inbox, offsets, wants_graphs
from esim_fast.layers import keyed_dropout
from esim_fast.training import CapturedStep, Recipe, capture, plan_capacities, step_sizes, training_step
from tests.training.training_tasks import (
    GraphsOnCPU,
    PoisonedGraphs,
    new_model,
    new_regression,
    new_regression_trainer,
    new_trainer,
    pairs,
)

WORDS = 60
RATE = 2**-9  # a float32: the graph's memory has rates in this precision


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "CUDAGraphs", GraphsOnCPU)


def corpus(count=203, seed=0, scores=False):
    """SNLI's lengths, few words, and some sentences without words."""
    found = draw_pairs(count, np.random.default_rng(seed))
    found.ids = found.ids % WORDS
    found.lengths = np.minimum(found.lengths, [20, 9])
    found.lengths[5], found.lengths[9, 0], found.lengths[11, 1] = 0, 0, 0
    if scores:
        found.labels = found.labels.astype(np.float32)
    return found


def batches_of(data, recipe, epoch=1):
    loader = batches(data, recipe.batch_size, shuffle=True, epoch=epoch, parts=recipe.accumulate)
    return zip(*[iter(loader)] * recipe.accumulate, strict=True)


class Run:
    """A network and what trains it, with captured or other steps."""

    def __init__(self, recipe, data, captured, device="cpu", **options):
        torch.manual_seed(0)
        labels = 1 if data.labels.dtype == np.float32 else 3
        self.net = esim_fast.ESIM(16, 12, WORDS, labels, **{"dropout": 0.0, **options}).to(device)
        self.recipe, self.class_weights = recipe, torch.tensor([1.0, 2.0, 0.5]) if recipe.class_weights else None
        trained = [weight for weight in self.net.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, fused=True)
        self.scaler = torch.amp.GradScaler(device, enabled=recipe.precision == "fp16")
        sizes = step_sizes(batches(data, recipe.batch_size, shuffle=True, epoch=1, parts=recipe.accumulate))
        capacities = plan_capacities(sizes)
        self.captured = (
            CapturedStep(self.net, self.optimizer, self.scaler, recipe, capacities, class_weights=self.class_weights)
            if captured
            else None
        )

    def __call__(self, parts):
        if self.captured is not None:
            result = self.captured(parts)
        else:
            arguments = self.optimizer, self.scaler, self.recipe
            parts = [part for part in parts if len(part)]
            result = training_step(self.net, parts, *arguments, class_weights=self.class_weights)
        return [float(value) for value in result]

    def train(self, data, steps, first=0):
        """Run that many steps with changing rates."""
        found = []
        for epoch in range(1, 9):
            for parts in batches_of(data, self.recipe, epoch):
                if len(found) == steps:
                    return np.array(found)
                self.optimizer.param_groups[0]["lr"] = RATE * (1 + len(found) % 3)
                found.append(self(parts))
        raise AssertionError("too few batches")

    @property
    def weights(self):
        return torch.cat([weight.detach().flatten() for weight in self.net.parameters()])


class KeyedRun(Run):
    """A run that draws dropout's masks as captured steps do."""

    steps = 0

    def __call__(self, parts):
        self.steps += 1
        with keyed_dropout(torch.tensor([self.recipe.seed, self.steps])):
            return super().__call__(parts)


SMALL = Recipe(batch_size=8)


class TestStep:
    @pytest.mark.parametrize(
        ("recipe", "options"),
        [
            (SMALL, {}),
            (replace(SMALL, accumulate=3), {}),
            (replace(SMALL, precision="bf16"), {}),
            (replace(SMALL, precision="fp16"), {}),
            (replace(SMALL, class_weights="balanced", label_smoothing=0.1, max_grad_norm=0.1), {}),
            (SMALL, {"freeze_embedding": True, "variant": "notebook", "padding_idx": None}),
            (SMALL, {"scores": True}),
        ],
        ids=["fp32", "accumulate", "bf16", "fp16", "weighted", "frozen", "scores"],
    )
    def test_fifty_steps_equal_uncaptured_ones(self, graphs, recipe, options):
        data = corpus(scores=options.pop("scores", False))
        captured, others = (Run(recipe, data, captured, **options) for captured in (True, False))
        found, expected = (run.train(data, 50) for run in (captured, others))
        half = recipe.precision != "fp32"
        np.testing.assert_allclose(found, expected, rtol=1e-2 if half else 1e-4, atol=1e-2 if half else 1e-5)
        torch.testing.assert_close(captured.weights, others.weights, rtol=0, atol=2e-3 if half else 2e-5)
        statistics = captured.captured.statistics
        assert statistics.replayed + statistics.eager == 50
        assert statistics.replayed > 20
        assert statistics.captured > 3

    @pytest.mark.parametrize("recipe", [replace(SMALL, seed=2**40), replace(SMALL, accumulate=3)])
    @pytest.mark.parametrize("variational", [False, True])
    def test_dropout_does_not_depend_on_the_capacity(self, graphs, recipe, variational):
        data, options = corpus(), {"dropout": 0.3, "variational_dropout": variational}
        captured, others = Run(recipe, data, True, **options), KeyedRun(recipe, data, False, **options)
        found, expected = (run.train(data, 50) for run in (captured, others))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(captured.weights, others.weights, rtol=0, atol=2e-5)
        assert captured.captured.statistics.replayed > 20

    def test_replayed_steps_have_the_bits_of_eager_ones(self, graphs, monkeypatch):
        data, results = corpus(), []
        for eager in (2, 10**6):
            monkeypatch.setattr(cuda_graphs, "EAGER_USES", eager)
            run = Run(SMALL, data, True, dropout=0.3)
            results.append((run.train(data, 40), run.weights, run.captured.statistics.replayed > 15))
        (found, weights, replayed), (expected, expected_weights, others) = results
        assert replayed
        assert not others
        assert (found == expected).all()
        assert torch.equal(weights, expected_weights)

    @pytest.mark.interpreter
    def test_triton_kernels(self, graphs):
        data = corpus(13)
        data.lengths = np.minimum(data.lengths, 3)
        recipe = Recipe(batch_size=2)
        captured, others = Run(recipe, data, True, backend="triton"), Run(recipe, data, False)
        np.testing.assert_allclose(captured.train(data, 5), others.train(data, 5), rtol=1e-4, atol=1e-5)
        assert captured.captured.statistics.replayed == 3

    @pytest.mark.gpu
    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    def test_replayed_steps_equal_eager_ones_on_a_gpu(self, monkeypatch, precision):
        """With the same masks of dropout, whatever is in the memory that graphs share."""

        monkeypatch.setattr(cuda_graphs, "CUDAGraphs", PoisonedGraphs)
        data, results = corpus(), []
        for eager in (2, 10**6):
            monkeypatch.setattr(cuda_graphs, "EAGER_USES", eager)
            run = Run(replace(SMALL, precision=precision), data, True, "cuda", dropout=0.3)
            results.append((run.train(data, 50), run.weights.cpu(), run.captured.statistics.replayed > 20))
        (found, weights, replayed), (expected, expected_weights, others) = results
        assert (replayed, others) == (True, False)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=2e-5)

    def test_a_graph_is_captured_at_the_third_use(self, graphs):
        data = EncodedPairs([[2, 3]] * 8, [[4]] * 8, [0] * 8)
        run = Run(Recipe(batch_size=2), data, True)
        for uses, (parts, expected) in enumerate(
            zip(batches_of(data, run.recipe), [(0, 1, 0), (0, 2, 0), (1, 2, 1), (2, 2, 1)], strict=True)
        ):
            run(parts)
            statistics = run.captured.statistics
            assert (statistics.replayed, statistics.eager, statistics.captured) == expected, uses

    def test_batches_without_a_capacity(self, graphs):
        """More pairs, more rows, longer sentences or more parts than planned: as without capture, also in between."""
        data, long = corpus(), EncodedPairs([[2] * 70, [3]], [[4], [5, 6]], [1, 0])
        captured, others = Run(SMALL, data, True), Run(SMALL, data, False)
        usual = list(batches_of(data, SMALL))
        large = [data[range(9)]], [data[np.argsort(-data.lengths.sum(1))[:8]]], [long[[0, 1]]], [long[[1]], long[[1]]]
        order = [*usual[:9], large[0], *usual[9:18], large[1], large[2], usual[18], large[3], *usual[19:]]
        found, expected = ([run(parts) for parts in order] for run in (captured, others))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(captured.weights, others.weights, rtol=0, atol=2e-5)
        assert captured.captured.statistics.replayed > 5

    def test_new_lengths(self, graphs):
        """An epoch of other data, half of it too large for the plan."""
        data = corpus()
        data.lengths = np.minimum(data.lengths, 12)
        captured, others = Run(SMALL, data, True), Run(SMALL, data, False)
        for run in (captured, others):
            run.train(data, 20)
        other = corpus(seed=1)
        np.testing.assert_allclose(captured.train(other, 20), others.train(other, 20), rtol=1e-4, atol=1e-5)

    def test_nothing_but_empty_sentences(self, graphs):
        data = EncodedPairs([[2, 3]] * 8, [[4]] * 8, [0, 1] * 4)
        empty = EncodedPairs([[]] * 2, [[]] * 2, [1, 2])
        captured, others = (Run(Recipe(batch_size=2), data, captured) for captured in (True, False))
        for run in (captured, others):
            for parts in batches_of(data, run.recipe):
                run(parts)
        np.testing.assert_allclose(captured([empty[[0, 1]]]), others([empty[[0, 1]]]), rtol=1e-5)
        assert captured.captured.statistics.replayed == 3

    def test_parts_without_pairs(self, graphs):
        recipe, data = Recipe(batch_size=4, accumulate=3), corpus(18)
        captured, others = Run(recipe, data, True), Run(recipe, data, False)
        np.testing.assert_allclose(captured.train(data, 20), others.train(data, 20), rtol=1e-4, atol=1e-5)
        assert 0 in [len(part) for parts in batches_of(data, recipe) for part in parts]

    @pytest.mark.parametrize("change", ["freeze", "move", "mode", "optimizer"])
    def test_graphs_are_dropped_when_something_changes(self, graphs, change):
        data = EncodedPairs([[2, 3]] * 16, [[4]] * 16, [0, 1] * 8)
        captured, others = (Run(Recipe(batch_size=2), data, captured) for captured in (True, False))
        results = []
        for run in (captured, others):
            steps = list(batches_of(data, run.recipe))
            values = [run(parts) for parts in steps[:4]]
            if change == "freeze":
                run.net.embedding.requires_grad_(False)
            elif change == "move":
                run.net.linear.mlp[3].weight.data = run.net.linear.mlp[3].weight.data.clone()
            elif change == "mode":
                run.net.eval()
            else:
                run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
            results.append(values + [run(parts) for parts in steps[4:]])
        np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)
        assert captured.captured.statistics.captured == 2
        assert captured.captured.statistics.eager == 4

    def test_whatever_differs_is_in_the_memory(self, graphs, monkeypatch):
        """A number on the host would be fixed in a graph, which calling the function again does not show."""
        data = corpus(27)
        run = Run(replace(SMALL, accumulate=2), data, True)
        seen = []

        def spy(net, parts, optimizer, *arguments, **options):
            batches = [(part.pairs.tokens, part.pairs.addresses, part.labels, part.whole) for part in parts]
            tensors = [
                layers._KEY.get()[0],
                *(group["lr"] for group in optimizer.param_groups),
                *(x for batch in batches for x in batch),
                *(x for _, *words in layers._KEPT.get() for x in words),
            ]
            memory = run.captured._inbox._memory
            seen.append([tensor.data_ptr() - memory.data_ptr() for tensor in tensors])
            assert all(0 <= offset < len(memory) for offset in seen[-1])
            assert [float(tensors[1]), float(parts[0].whole)] == pytest.approx([rate, sum(map(len, batch))])
            assert tensors[0].tolist() == [run.recipe.seed, len(seen)]
            return training_step(net, parts, optimizer, *arguments, **options)

        monkeypatch.setattr(capture, "training_step", spy)
        for step, batch in enumerate([*batches_of(data, run.recipe, 1), *batches_of(data, run.recipe, 2)]):
            rate = run.optimizer.param_groups[0]["lr"] = 0.001 * step
            run(batch)
        assert len(seen) == 8

    def test_gradients_are_not_kept(self, graphs):
        """``.grad`` before a step does not matter either, and the embedding's gradient is cleared after each."""
        data = corpus(60)
        captured, others = (Run(replace(SMALL, accumulate=2), data, captured) for captured in (True, False))
        for run in (captured, others):
            results = []
            for parts in [*batches_of(data, run.recipe, 1), *batches_of(data, run.recipe, 2)]:
                run.net.embedding.weight.grad = torch.ones_like(run.net.embedding.weight)
                results.append(run(parts))
                if run is captured:
                    assert all(weight.grad is None for weight in run.net.parameters())
                    assert not run.captured._table.any()
            run.results = results
        np.testing.assert_allclose(captured.results, others.results, rtol=1e-4, atol=1e-5)
        assert captured.captured.statistics.replayed >= 2

    def test_the_optimizers_options_are_left_alone(self, graphs):
        data = EncodedPairs([[2, 3]] * 8, [[4]] * 8, [0] * 8)
        run = Run(Recipe(batch_size=2), data, True)
        for parts in batches_of(data, run.recipe):
            run(parts)
        (group,) = run.optimizer.param_groups
        assert (type(group["lr"]), group["lr"], group["capturable"]) == (float, RATE, False)


class TestObstacles:
    @pytest.mark.parametrize(
        ("prevent", "why"),
        [
            (lambda run: run.net.linear.register_forward_hook(lambda *_: None), "hooks or replaced forward passes"),
            (lambda run: run.net.linear.mlp[1].weight.register_hook(lambda g: g), "parameters have hooks"),
            (lambda run: setattr(run.net.linear, "forward", run.net.linear.forward), "replaced forward passes"),
            (lambda run: setattr(run.net.linear, "_compiled_call_impl", run.net.linear._call_impl), "compiled"),
            (lambda run: run.optimizer.param_groups[0].update(fused=False), "fused=True"),
        ],
        ids=["hook", "gradient hook", "forward", "compiled", "optimizer"],
    )
    def test_steps_run_eagerly_and_say_so_once(self, graphs, prevent, why, monkeypatch):
        monkeypatch.setattr(esim_fast.ESIM, "_absorbs_difference", lambda *_: False)  # as with hooks
        data = EncodedPairs([[2, 3]] * 12, [[4]] * 12, [0, 1] * 6)
        captured, others = (Run(Recipe(batch_size=2), data, captured) for captured in (True, False))
        prevent(captured)
        first, *rest = batches_of(data, captured.recipe)
        with pytest.warns(UserWarning, match=f"^training steps run eagerly, not as CUDA graphs: .*{why}") as caught:
            found = [captured(first)]
        assert len(caught) == 1
        assert caught[0].filename == __file__
        found += [captured(parts) for parts in rest]  # a warning is an error
        expected = [others(parts) for parts in (first, *rest)]
        if why == "fused=True":  # optimizers that are not fused round otherwise
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        else:
            assert found == expected
        assert captured.captured.statistics.eager == 6

    def test_kernels_that_need_sizes_on_the_host(self):
        obstacle = CUDAGraphs.obstacle
        assert "Triton and CUDA kernels" in obstacle(None, esim_fast.ESIM(8, 8, 9, 2, backend="reference"))
        assert "Triton and CUDA kernels" in obstacle(None, esim_fast.ESIM(8, 8, 9, 2))  # on a CPU

    def test_lstms_in_another_precision(self, monkeypatch):
        monkeypatch.setattr(cuda_graphs, "runs_on", lambda *_: True)
        net = esim_fast.ESIM(8, 8, 9, 2)
        assert CUDAGraphs.obstacle(None, net) is None
        assert "fp32" in CUDAGraphs.obstacle(None, net.to(torch.bfloat16))

    def test_a_network_that_is_not_on_a_gpu(self):
        net = esim_fast.ESIM(8, 8, 9, 2)
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        with pytest.raises(ValueError, match=r"^expected a network on an NVIDIA GPU, got one on cpu$"):
            CapturedStep(net, optimizer, torch.amp.GradScaler("cpu", enabled=False), SMALL, [])

    def test_its_gpu_is_the_current_one(self, graphs, monkeypatch):
        current = []

        @contextmanager
        def make_current(device):
            current.append(device)
            yield
            current.clear()

        def capture(self, work):
            assert current == [torch.device("cpu")]
            return work

        monkeypatch.setattr(GraphsOnCPU, "current", staticmethod(make_current))
        monkeypatch.setattr(GraphsOnCPU, "capture", capture)
        data = corpus()
        run = Run(SMALL, data, captured=True)
        for parts in batches_of(data, SMALL):
            run(parts)
        assert run.captured.statistics.captured
        assert not current


class TestInbox:
    def test_slots_are_not_overwritten_before_they_are_copied(self):
        slots = [GraphsOnCPU(None).new_slot(64) for _ in range(4)]
        inbox = Inbox(slots, torch.device("cpu"))
        for step in range(6):
            inbox.receive([torch.tensor([step])])
        assert [event.calls for _, event in slots] == [["synchronize", "record"] * times for times in (2, 2, 1, 1)]
        assert [int(slot.view(torch.int64)[0]) for slot, _ in slots] == [4, 5, 2, 3]

    def test_views_are_aligned_and_apart(self):
        tensors = [torch.arange(3), torch.tensor(0.5), torch.arange(0), torch.rand(5), torch.ones(2, 2)]
        inbox = Inbox([GraphsOnCPU(None).new_slot(offsets(tensors)[-1])] * 2, torch.device("cpu"))
        views = inbox.receive(tensors)
        for view, tensor in zip(views, tensors, strict=True):
            assert torch.equal(view, tensor)
            assert (view.data_ptr() - inbox._memory.data_ptr()) % 16 == 0
        others = [tensor + 1 for tensor in tensors]
        assert [view.data_ptr() for view in inbox.receive(others)] == [view.data_ptr() for view in views]
        assert all(torch.equal(view, other) for view, other in zip(views, others, strict=True))


class TestTrainer:
    RECIPE = Recipe(epochs=3, batch_size=8, patience=None, seed=3, ema_decay=0.9)

    def test_it_trains_as_without_graphs(self, graphs, tmp_path):
        weights = []
        for use in ("on", "off"):
            model = new_model(dropout=0.0)
            trainer = new_trainer(self.RECIPE, tmp_path / use, model, pairs(156, 1), cuda_graphs=use)
            weights.append((trainer.run(), torch.cat([weight.flatten() for weight in model.net.parameters()])))
            forward = trainer.forward and vars(trainer.forward.statistics)
            assert forward == ({"replayed": 5, "eager": 4, "captured": 2} if use == "on" else None)  # 9 batches of dev
        (history, found), (expected_history, expected) = weights
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        for metrics, others in zip(history, expected_history, strict=True):
            assert metrics.train_loss == pytest.approx(others.train_loss, rel=1e-4)
            assert metrics.dev_loss == pytest.approx(others.dev_loss, rel=1e-4)
            assert (metrics.train_accuracy, metrics.dev_accuracy) == (others.train_accuracy, others.dev_accuracy)
            assert "eager_steps" not in others.as_dict()
        counts = [(m.replayed_steps, m.eager_steps, m.captured_graphs) for m in history]
        assert counts == [(17, 3, 1), (19, 1, 0), (20, 0, 1)]  # the last batch has a capacity of its own
        lines = (tmp_path / "on" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["replayed_steps"] for line in lines] == [17, 19, 20]

    @pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, max_tokens=40, accumulate=2)])
    def test_a_resumed_run_has_the_same_bits(self, graphs, tmp_path, recipe):
        """With dropout, although the resumed run replays fewer steps."""
        whole = new_trainer(recipe, tmp_path / "whole", cuda_graphs="on")
        whole.run()
        calls = iter(range(100))
        stopped = new_trainer(recipe, tmp_path / "parts", should_stop=lambda: next(calls) == 24, cuda_graphs="on")
        with pytest.raises(KeyboardInterrupt):
            stopped.run()
        resumed = new_trainer(recipe, tmp_path / "parts", new_model(seed=7), resume=True, cuda_graphs="on")
        assert resumed.progress.batch > 2
        history = resumed.run()
        for found, expected in zip(resumed.net.parameters(), whole.net.parameters(), strict=True):
            assert torch.equal(found, expected)
        others = {"seconds": 0, "replayed_steps": None, "eager_steps": None, "captured_graphs": None}
        assert [replace(m, **others) for m in history] == [replace(m, **others) for m in whole.progress.history]
        steps = [[m.replayed_steps + m.eager_steps for m in run.progress.history] for run in (whole, resumed)]
        assert steps[0] == steps[1]

    def test_scores(self, graphs, tmp_path):
        history = []
        for use in ("on", "off"):
            trainer = new_regression_trainer(self.RECIPE, tmp_path / use, new_regression(dropout=0.0), cuda_graphs=use)
            history.append([metrics.train_loss for metrics in trainer.run()])
        assert history[0] == pytest.approx(history[1], rel=1e-4)

    def test_auto_is_off(self, graphs, tmp_path):
        assert new_trainer(self.RECIPE, tmp_path).captured is None
        assert not wants_graphs("auto", torch.device("cuda"))
        assert wants_graphs("on", torch.device("cpu"))

    def test_where_steps_cannot_be_captured(self, tmp_path, graphs, monkeypatch):
        with pytest.raises(ValueError, match=r"^cuda_graphs: expected on, off or auto, got 'yes'$"):
            new_trainer(self.RECIPE, tmp_path, cuda_graphs="yes")
        monkeypatch.undo()
        with pytest.raises(ValueError, match=r"^cuda_graphs: 'on' needs an NVIDIA GPU, and this device is cpu$"):
            new_trainer(self.RECIPE, tmp_path, cuda_graphs="on")
