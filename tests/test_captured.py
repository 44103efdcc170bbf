"""Captured forward passes give the logits of uncaptured ones. Without a GPU, a graph calls the captured function again,
which gets nothing new but what was copied to the memory that it reads."""

import contextlib
import copy
import pickle
import threading
import time
import weakref
from unittest import mock

import numpy as np
import pytest
import torch

from esim_fast import ESIM, Classifier, captured, graphs, pack_pairs, scoring
from esim_fast.captured import CapturedForward
from esim_fast.data import Vocabulary
from esim_fast.graphs import CUDAGraphs
from tests.training.training_tasks import GraphsOnCPU, PoisonedGraphs

WORDS = 40
SENTENCES = ["", "a b", "c", "b a d", "e f g h i j", "c c a", "k l a b c", "d"]
PAIRS = [(premise, hypothesis) for premise in SENTENCES for hypothesis in SENTENCES]


@pytest.fixture(autouse=True)
def _graphs_on_cpu(request, monkeypatch):
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(graphs, "CUDAGraphs", GraphsOnCPU)


def new_net(labels=3, **options):
    torch.manual_seed(0)
    net = ESIM(16, 12, WORDS, labels, **options)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # makes logits differ
    return net.eval()


def some_pairs(seed):
    """Few or many pairs of sentences with 0 to few or many words."""
    rng = np.random.default_rng(seed)
    count, *longest = (int(rng.choice(sizes)) for sizes in ([1, 6, 12], [3, 9, 20], [3, 9]))
    ids = [torch.from_numpy(rng.integers(2, WORDS, (count, length))) for length in longest]
    return pack_pairs(*ids, *(torch.from_numpy(rng.integers(0, length + 1, count)) for length in longest))


def equal_pairs(seed, count=4, words=3):
    """Pairs of one capacity."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(2, WORDS, (2, count, words)))
    return pack_pairs(*ids, *torch.full((2, count), words))


def exact(net, pairs):
    """The logits in fp64; a list for a list."""
    net = copy.deepcopy(net).double()
    with torch.no_grad():
        return [net(one).float() for one in pairs] if isinstance(pairs, list) else net(pairs).float()


def assert_equal_up_to_rounding(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * max(1, float(expected.abs().max())))


def counts(forward):
    statistics = forward.statistics
    return statistics.replayed, statistics.eager, statistics.captured


class TestLogits:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"variant": "notebook", "padding_idx": None},
            {"labels": 1, "padding_idx": 0},
            {"variational_dropout": True, "backend": "reference"},
        ],
        ids=["paper", "notebook", "scores", "variational"],
    )
    def test_random_batches(self, options):
        """All results are kept, so that none may lie in memory that the next batch uses."""
        net = new_net(**options)
        forward = CapturedForward(net)
        batches = [some_pairs(seed) for seed in range(200)]
        found = [forward(pairs) for pairs in batches]
        for logits, expected in zip(found, exact(net, batches), strict=True):
            assert logits.dtype == torch.float32
            assert_equal_up_to_rounding(logits, expected)
        replayed, eager, captured = counts(forward)
        assert replayed + eager == 200
        assert replayed > 120
        assert captured > 5

    def test_bf16(self):
        net = new_net()
        forward = CapturedForward(net, "bf16")
        batches = [some_pairs(seed) for seed in range(40)]
        batches.append(equal_pairs(0, words=65))  # has no capacity
        for pairs, expected in zip(batches, exact(net, batches), strict=True):
            found, scale = forward(pairs), max(1, float(expected.abs().max()))
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=0, atol=2**-5 * scale)
            assert float((found - expected).abs().max()) > 2**-14 * scale or len(pairs) == 1  # or it is fp32
        assert forward.statistics.replayed > 5

    @pytest.mark.parametrize(
        "lengths",
        [([3], [2]), ([0], [4]), ([0], [0]), ([0, 0, 0], [0, 0, 0]), ([5, 0, 1, 64], [0, 2, 64, 1])],
        ids=["one pair", "one sentence", "nothing", "nothing thrice", "the longest"],
    )
    def test_small_and_empty_batches(self, lengths):
        net = new_net()
        forward = CapturedForward(net)
        ids = [torch.randint(2, WORDS, (len(side), max(side))) for side in lengths]
        pairs = pack_pairs(*ids, *lengths)
        for _ in range(4):
            assert_equal_up_to_rounding(forward(pairs), exact(net, pairs))
        assert counts(forward) == (2, 2, 1)

    @pytest.mark.interpreter
    def test_triton_kernels(self):
        net = new_net(backend="triton")
        forward = CapturedForward(net)
        for seed in range(4):
            pairs = equal_pairs(seed)
            assert_equal_up_to_rounding(forward(pairs), exact(new_net(), pairs))
        assert counts(forward) == (2, 2, 1)

    def test_whatever_differs_is_in_the_memory(self, monkeypatch):
        """A number on the host would be fixed in a graph, which calling the function again does not show."""
        net = new_net()
        forward = CapturedForward(net)
        seen = []

        def spy(net, precision, pairs, logits):
            memory = forward._inbox._memory
            places = [tensor.data_ptr() - memory.data_ptr() for tensor in (pairs.tokens, pairs.addresses)]
            assert all(0 <= place < len(memory) for place in places)
            assert (pairs.batch_sizes, pairs.words) == (None, None)
            seen.append((places, pairs.longest, len(pairs), len(pairs.tokens)))
            compute(net, precision, pairs, logits)

        compute = captured._compute
        monkeypatch.setattr(captured, "_compute", spy)
        for seed in range(5):
            forward(equal_pairs(seed, words=3 + seed % 2))
        assert len({str(what) for what in seen}) == 1
        assert counts(forward) == (3, 2, 1)

    @pytest.mark.gpu
    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    def test_replayed_ones_equal_eager_ones_on_a_gpu(self, monkeypatch, precision):
        """Also if the memory that graphs share is filled with NaN."""

        monkeypatch.setattr(graphs, "CUDAGraphs", PoisonedGraphs)
        net = new_net().to("cuda")
        batches, results = [some_pairs(seed) for seed in range(100)], []
        for eager in (2, 10**6):
            monkeypatch.setattr(graphs, "EAGER_USES", eager)
            forward = CapturedForward(net, precision)
            results.append(([forward(pairs) for pairs in batches], forward.statistics.replayed > 40))
        (found, replayed), (expected, others) = results
        assert (replayed, others) == (True, False)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        tolerance = {"fp32": 1e-4, "bf16": 2**-5, "fp16": 2**-8}[precision]
        for logits, wanted in zip(found, exact(net.cpu(), batches), strict=True):
            torch.testing.assert_close(logits, wanted, rtol=0, atol=tolerance * max(1, float(wanted.abs().max())))


class TestCapacities:
    def test_a_graph_is_captured_at_the_third_use(self):
        forward = CapturedForward(new_net())
        for use, expected in enumerate([(0, 1, 0), (0, 2, 0), (1, 2, 1), (2, 2, 1)]):
            forward(equal_pairs(use))
            assert counts(forward) == expected
        forward(equal_pairs(0, words=30))  # of another capacity
        assert counts(forward) == (2, 3, 1)

    @pytest.mark.parametrize("unit", [4, 16])
    def test_the_grid(self, unit):
        found = [captured._rounded_up(size, unit) for size in range(2**12 + 1)]
        assert found == sorted(found)
        assert all(room >= size and room % unit == 0 and room > 0 for size, room in enumerate(found))
        assert all(room <= size * 1.25 for size, room in enumerate(found) if size > 8 * unit)
        assert all(room < size + unit for size, room in enumerate(found) if 0 < size <= 8 * unit)
        assert all(captured._rounded_up(room, unit) == room for room in set(found))
        assert {2**power for power in range(unit.bit_length(), 13)} < set(found)

    def test_batches_that_are_too_large(self, monkeypatch):
        """They run as without graphs, also between batches that are replayed."""
        monkeypatch.setattr(captured, "_MOST_ROWS", 80)
        monkeypatch.setattr(captured, "_MOST_PAIRS", 8)
        net = new_net()
        forward = CapturedForward(net)
        small = equal_pairs(2)
        long = pack_pairs(torch.full((1, 65), 2), torch.full((1, 1), 3), [65], [1])
        for large in (long, equal_pairs(1, 9, 1), equal_pairs(1, 8, 6)):
            for pairs in (large, small) * 3:
                assert_equal_up_to_rounding(forward(pairs), exact(net, pairs))
        assert counts(forward) == (7, 9 + 2, 1)
        long = pack_pairs(torch.full((1, 64), 2), torch.full((1, 1), 3), [64], [1])
        for pairs in (long, equal_pairs(1, 8, 1), equal_pairs(1, 8, 5)):  # are not too large
            for _ in range(3):
                forward(pairs)
        assert counts(forward) == (7 + 3, 9 + 2 + 6, 4)

    def test_the_bounds_are_those_of_a_forward_pass(self):
        assert captured._MOST_ROWS == scoring._MOST_TOKENS
        for unit, most in ((captured._ROWS, captured._MOST_ROWS), (captured._PAIRS, captured._MOST_PAIRS)):
            assert captured._rounded_up(most, unit) == most

    def test_further_capacities_stay_eager(self, monkeypatch):
        monkeypatch.setattr(captured, "_MOST_GRAPHS", 2)
        net = new_net()
        forward = CapturedForward(net)
        for seed in range(5):
            for count in (4, 8, 16):
                pairs = equal_pairs(seed, count)
                assert_equal_up_to_rounding(forward(pairs), exact(net, pairs))
        assert counts(forward) == (6, 9, 2)

    def test_logits_do_not_depend_on_what_came_before(self):
        """Eagerly or not, they have the same bits."""
        net, pairs = new_net(), some_pairs(0)
        forward = CapturedForward(net)
        first = forward(pairs)
        for seed in range(12):
            forward(some_pairs(seed))
            assert torch.equal(forward(pairs), first)
        assert forward.statistics.replayed > 8


class TestChanges:
    @pytest.mark.parametrize(
        ("change", "dropped"),
        [
            (lambda net: net.linear.mlp[1].weight.data.mul_(2), False),
            (lambda net: net.load_state_dict({k: v + 0.1 for k, v in net.state_dict().items()}), False),
            (lambda net: net.load_state_dict(copy.deepcopy(new_net().double().state_dict()), assign=True), True),
            (lambda net: net.double(), True),
            (lambda net: setattr(net.encoder.lstm, "weight_hh_l0", torch.nn.Parameter(torch.randn(64, 16))), True),
            (lambda net: setattr(net.inference, "backend", "reference"), True),
        ],
        ids=["in place", "loaded", "assigned", "converted", "replaced", "backend"],
    )
    def test_results_follow(self, change, dropped):
        net = new_net()
        forward = CapturedForward(net)
        for seed in range(4):
            forward(equal_pairs(seed))
        change(net)
        for seed in range(4):
            assert_equal_up_to_rounding(forward(equal_pairs(seed)), exact(net, equal_pairs(seed)))
        assert counts(forward) == ((4, 4, 2) if dropped else (6, 2, 1))

    def test_a_network_that_the_kernels_do_not_support_any_more(self, monkeypatch):
        monkeypatch.setattr(GraphsOnCPU, "obstacle", CUDAGraphs.obstacle)
        monkeypatch.setattr(graphs, "runs_on", lambda *_: True)
        net = new_net()
        forward = CapturedForward(net)
        for seed in range(3):
            forward(equal_pairs(seed))
        net.to(torch.bfloat16)
        with pytest.warns(UserWarning, match=r"^inference runs eagerly, not as CUDA graphs: .* LSTMs are not in fp32$"):
            found = forward(equal_pairs(0))
        with torch.no_grad():
            assert torch.equal(found, net(equal_pairs(0)).float())
        assert counts(forward) == (1, 3, 1)

    def test_inference_mode(self):
        net, pairs = new_net(), equal_pairs(0)
        with torch.inference_mode():
            forward = CapturedForward(net)
            forward(pairs)
        found = [forward(pairs) for _ in range(3)]
        with torch.inference_mode():
            found.append(forward(pairs))
        assert all(torch.equal(logits, found[0]) for logits in found)
        assert counts(forward) == (3, 2, 1)

    def test_nothing_keeps_the_network(self):
        """Without waiting for the garbage collector, which knows nothing of a GPU's memory."""
        net = new_net()
        forward = CapturedForward(net)
        for seed in range(3):
            forward(equal_pairs(seed))
        alive = weakref.ref(forward._logits)
        del forward
        assert alive() is None


class TestObstacles:
    @pytest.mark.parametrize(
        ("prevent", "why"),
        [
            (lambda net: net.linear.register_forward_hook(lambda *_: None), "hooks or replaced forward passes"),
            (lambda net: setattr(net.linear, "forward", net.linear.forward), "replaced forward passes"),
            (lambda net: setattr(net.linear, "_compiled_call_impl", net.linear._call_impl), "compiled"),
        ],
        ids=["hook", "forward", "compiled"],
    )
    def test_it_runs_eagerly_and_says_so_once(self, prevent, why):
        net = new_net()
        forward = CapturedForward(net)
        prevent(net)
        with pytest.warns(UserWarning, match=f"^inference runs eagerly, not as CUDA graphs: .*{why}") as caught:
            found = [forward(equal_pairs(0))]
        assert len(caught) == 1
        assert caught[0].filename == __file__
        found += [forward(equal_pairs(seed)) for seed in (1, 2, 3)]  # a warning is an error
        with torch.no_grad():
            assert all(torch.equal(logits, net(equal_pairs(seed))) for seed, logits in enumerate(found))
        assert counts(forward) == (0, 4, 0)

    def test_autocast(self):
        net = new_net()
        forward = CapturedForward(net)
        for seed in range(3):
            forward(equal_pairs(seed))
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            expected = net(equal_pairs(0)).float()
            with pytest.warns(UserWarning, match="autocast is on"):
                assert torch.equal(forward(equal_pairs(0)), expected)
        assert_equal_up_to_rounding(forward(equal_pairs(0)), exact(net, equal_pairs(0)))
        assert counts(forward) == (2, 3, 1)

    def test_a_network_that_is_not_on_a_gpu(self, monkeypatch):
        monkeypatch.undo()
        with pytest.raises(ValueError, match=r"^expected a network on an NVIDIA GPU, got one on cpu$"):
            CapturedForward(new_net())

    def test_precisions(self):
        with pytest.raises(ValueError, match=r"^precision must be one of 'fp32', .*, got 'int8'$"):
            CapturedForward(new_net(), "int8")

    def test_pairs_with_a_capacity(self):
        with pytest.raises(ValueError, match="already have a capacity"):
            CapturedForward(new_net())(equal_pairs(0).with_capacity(50, 5))


def test_threads(monkeypatch):
    """Several threads, each with its own pairs of the same capacity."""

    class Slow(GraphsOnCPU):
        def capture(self, work):
            def replay():
                time.sleep(0.001)  # lets another thread run
                work()
                time.sleep(0.001)

            return replay

    monkeypatch.setattr(graphs, "CUDAGraphs", Slow)
    net = new_net()
    forward = CapturedForward(net)
    found = {}

    def run(first):
        for seed in range(first, first + 12):
            found[seed] = forward(equal_pairs(seed))

    threads = [threading.Thread(target=run, args=(12 * thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(48))
    for seed, logits in found.items():
        assert_equal_up_to_rounding(logits, exact(net, equal_pairs(seed)))
    assert counts(forward) == (46, 2, 1)


def test_threads_do_not_capture_at_once(monkeypatch):
    """Graphs of two networks, which torch captures on the same stream."""
    busy, done = threading.Lock(), []

    @contextlib.contextmanager
    def capturing(graph, **_):
        if busy.acquire(blocking=False):
            yield
            done.append(graph)
            busy.release()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", mock.Mock)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    arguments = mock.Mock(), lambda: time.sleep(0.01)
    threads = [threading.Thread(target=CUDAGraphs.capture, args=arguments) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4


class TestClassifier:
    @pytest.fixture
    def model(self):
        words = ["<unk>", "<pad>", *map(chr, range(97, 97 + WORDS - 2))]
        names = ["contradiction", "entailment", "neutral"]
        return Classifier(new_net(), Vocabulary(words), names, "whitespace", cuda_graphs="on")

    def plain(self, model):
        found = copy.copy(model)
        found.cuda_graphs = "off"
        return found

    def test_predict(self, model):
        expected = self.plain(model).predict(PAIRS)
        for _ in range(3):
            found = model.predict(PAIRS, batch_size=16)
            assert found.labels == expected.labels
            assert_equal_up_to_rounding(found.probabilities, expected.probabilities)
        assert counts(model.captured)[0] > 3
        assert sum(counts(model.captured)[:2]) == 12

    def test_one_pair(self, model):
        expected = self.plain(model).predict(PAIRS[12])
        for _ in range(4):
            label, probabilities = model.predict(PAIRS[12])
            assert label == expected.label
            assert_equal_up_to_rounding(probabilities, expected.probabilities)
        assert counts(model.captured) == (2, 2, 1)
        assert model.predict([]).labels == []

    def test_rank(self, model):
        expected = self.plain(model).rank(SENTENCES[:3], SENTENCES)
        found = model.rank(SENTENCES[:3], SENTENCES)
        for ours, wanted in zip(found, expected, strict=True):
            assert [one["corpus_id"] for one in ours] == [one["corpus_id"] for one in wanted]
            assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in wanted], rel=1e-4)
        assert sum(counts(model.captured)) == 1

    def test_in_training_mode(self, model):
        """Afterwards the network is in the mode that it was in."""
        expected = model.predict(PAIRS)
        model.net.train()
        for _ in range(3):
            assert torch.equal(model.predict(PAIRS).probabilities, expected.probabilities)
        assert model.net.training
        assert counts(model.captured) == (2, 2, 1)

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_have_graphs_of_their_own(self, model, copied):
        for _ in range(3):
            expected = model.predict(PAIRS)
        other = copied(model)
        assert other.cuda_graphs == "on"
        assert other.captured is not model.captured
        assert counts(other.captured) == (0, 0, 0)
        assert torch.equal(other.predict(PAIRS).probabilities, expected.probabilities)
        assert counts(model.captured) == (1, 2, 1)

    def test_saved_models(self, model, tmp_path):
        model.predict(PAIRS)
        model.save_pretrained(tmp_path)
        assert Classifier.from_pretrained(tmp_path).captured is None
        loaded = Classifier.from_pretrained(tmp_path, device="cpu", cuda_graphs="on")
        assert torch.equal(loaded.predict(PAIRS).probabilities, model.predict(PAIRS).probabilities)
        assert counts(loaded.captured) == (0, 1, 0)

    def test_another_network_or_precision(self, model):
        first = model.captured
        assert model.captured is first
        model.net = copy.deepcopy(model.net)
        torch.nn.init.normal_(model.net.linear.mlp[3].weight)
        expected = self.plain(model).predict(PAIRS).probabilities
        assert_equal_up_to_rounding(model.predict(PAIRS).probabilities, expected)
        assert counts(first) == (0, 0, 0)
        model.precision = "bf16"
        assert model.captured.precision == "bf16"
        assert model.captured.net is model.net
        model.cuda_graphs = "off"
        assert model.captured is None

    def test_where_there_are_none(self, model, tmp_path, monkeypatch):
        model.save_pretrained(tmp_path)
        net, vocabulary, labels = model.net, model.vocabulary, model.labels
        monkeypatch.undo()
        message = r"^cuda_graphs: 'on' needs an NVIDIA GPU, and this device is cpu$"
        for refuse in (
            lambda: Classifier(net, vocabulary, labels, cuda_graphs="on"),
            lambda: Classifier.from_pretrained(tmp_path, device="cpu", cuda_graphs="on"),
            lambda: model.to("cpu"),
            lambda: model.predict(PAIRS),
        ):
            with pytest.raises(ValueError, match=message):
                refuse()
        with pytest.raises(ValueError, match=r"^cuda_graphs: expected on, off or auto, got 'maybe'$"):
            Classifier(net, vocabulary, labels, cuda_graphs="maybe")
