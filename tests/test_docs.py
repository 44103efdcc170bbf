"""Every code block of the READMEs and of docs/ runs as it is written, and every link leads somewhere."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import esim_fast
from esim_fast import Classifier, graphs, metrics, recipe
from tests import documented_files
from tests.pages import PAGES, READMES, ROOT, SHOWN, blocks, needs, run, run_line, skip_without, text_of
from tests.training.training_tasks import GraphsOnCPU

# What a page's code shows is a part of a training script, or of a network, that the reader has.
WITH_A_SCRIPT = {*READMES, "docs/checkpoints.md", "docs/ops.md", "docs/differences.md", "docs/how-it-works.md"}

Check = Callable[[dict, str], None]  # of a page's names and of what it printed
checks: dict[str, Check] = {}


def after(page: str) -> Callable[[Check], Check]:
    """Registers a check that runs in the page's folder after its code."""

    def register(check: Check) -> Check:
        assert (ROOT / page).is_file(), page
        checks[page] = check
        return check

    return register


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documented")
    documented_files.make(folder)
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """With the files that pages name; networks are small there, and runs short, unless a page says otherwise. CUDA
    graphs are replaced by ones that run on a CPU."""
    shutil.copytree(files, tmp_path / "folder")
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setattr(graphs, "CUDAGraphs", GraphsOnCPU)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # a minute less
    sizes = recipe.ModelOptions.__init__.__defaults__
    monkeypatch.setattr(recipe.ModelOptions.__init__, "__defaults__", (8, 8, *sizes[2:]))
    monkeypatch.setattr(recipe.Recipe.__init__, "__defaults__", (2, *recipe.Recipe.__init__.__defaults__[1:]))
    for name, preset in recipe.PRESETS.items():
        monkeypatch.setitem(recipe.PRESETS, name, replace(preset, epochs=2))
    for name, options in recipe.PRESET_MODELS.items():
        monkeypatch.setitem(recipe.PRESET_MODELS, name, replace(options, hidden_size=8, embedding_dim=8))
    return tmp_path / "folder"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore:Setting forward")  # Captum says what it does
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.ao.quantization
def test_every_block_runs(page, folder, capsys):
    skip_without(needs(page))
    code = "\n".join(block.code for block in blocks(page))
    if re.search(r"--output model\b|convert \S+ model\b", code):
        shutil.rmtree(folder / "model")
    names = documented_files.script() if page in WITH_A_SCRIPT else {}
    run(page, names)
    for directory in re.findall(
        r"""--output ([\w-]+)|save_pretrained\("([\w-]+)"\)|esim-fast convert \S+ ([\w-]+)""", code
    ):
        path = folder / "".join(directory)
        tokenizer = json.loads((path / "config.json").read_text())["tokenizer"]
        Classifier.from_pretrained(path, device="cpu", tokenizer=tokenizer)
    for name in re.findall(r"(?:-o|--errors|--confusion|>) ([\w.-]+)$", code, re.M):
        assert (folder / name).stat().st_size
    if page in checks:
        checks[page](names, capsys.readouterr().out)


def test_blocks_that_do_not_run():
    skipped = [(page, block.language) for page in PAGES for block in blocks(page) if block.language.endswith(" skip")]
    assert skipped == [("docs/python.md", "python skip")]  # it needs the Hugging Face Hub


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_in_a_known_language(page):
    known = {*SHOWN, "bash", "python", "yaml", "bash skip", "python skip"}
    assert {block.language for block in blocks(page)} <= known
    fences = re.findall("^ *```", text_of(page), re.M)
    assert len(fences) == 2 * len(blocks(page))
    assert not any(fence.startswith(" ") for fence in fences)


@pytest.mark.parametrize("page", [*PAGES, "SECURITY.md", "benchmarks/NOTES.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)):
        if re.match("https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def anchors(text: str) -> list[str]:
    """Of all headings, as GitHub makes them."""
    headings = re.findall("^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@after("README.md")
def check_readme(names, printed):
    assert len(Path("answers.jsonl").read_text().splitlines()) == 9
    assert names["logits"].shape[1] == 3
    assert len(names["history"]) > 1
    assert [entry.keys() for entry in names["ranked"]] == [{"corpus_id", "score"}] * 2
    assert "<html" in Path("attention.html").read_text(encoding="utf-8")


@after("README.zh-CN.md")
def check_readme_in_chinese(names, printed):
    for name in ("answers.jsonl", "answers-jieba.jsonl"):
        answers = [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]
        assert len(answers) == 20
        assert {answer["label"] for answer in answers} <= {"0", "1"}
    for name in ("attention.html", "attention-jieba.html"):
        assert "注销" in Path(name).read_text(encoding="utf-8")
    assert names["cut"]("iPhone 的花呗") == ["iphone", "的", "花呗"]
    run_line("esim-fast train --data lcqmc --tokenizer mytok:cut --output lcqmc-mytok")


@after("docs/objectives.md")
def check_objectives(names, printed):
    assert Classifier.from_pretrained("scorer", device="cpu").task == "regression"
    assert [metrics.dev_accuracy for metrics in names["history"]] == [None, None]
    decided = Classifier.from_pretrained("decided", device="cpu")
    assert (decided.temperature, decided.threshold) == (names["calibration"].temperature, names["threshold"].threshold)


@after("docs/watching.md")
def check_watching(names, printed):
    assert list(Path("model/tensorboard").iterdir())
    for directory in ("model", "from-file"):
        assert Path(directory, "steps.csv").exists()
    models = [Classifier.from_pretrained(name, device="cpu") for name in ("from-file", "again")]
    first, again = (model.training["recipe"] for model in models)
    assert again == {**first, "seed": 1}
    assert (first["epochs"], first["learning_rate"], first["ema_decay"]) == (1, 0.002, 0.999)


@after("docs/python.md")
def check_python(names, printed):
    assert len(names["history"]) > 1
    assert names["logits"].shape[1] == 3
    for name in ("fitted", "from-script"):
        assert Classifier.from_pretrained(name).labels == ["contradiction", "entailment", "neutral"]


@after("docs/evaluation.md")
def check_evaluation(names, printed):
    assert len(names["wrong"]) == len(Path("errors.jsonl").read_text().splitlines())
    reports = [json.loads(line) for line in printed.splitlines() if line.startswith("{") and '"dropped"' in line]
    assert len(reports) == text_of("docs/evaluation.md").count("\nesim-fast evaluate ")
    for report in reports:
        for name in {*report, *report.get("ranking", {})} - {"absent_labels", "relevant_label"}:
            assert f"`{name}`" in text_of("docs/evaluation.md")
    assert metrics.roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75


@after("docs/export.md")
def check_export(names, printed):
    assert names["label"].shape == (1,)
    assert Path("network.onnx").stat().st_size == names["file"].size
    assert all(Path(name).stat().st_size for name in ("model.onnx", "model.onnx.json", "words.onnx", "small.onnx"))


@after("docs/ranking.md")
def check_ranking(names, printed):
    queries, candidates = (len(Path(f"{name}.txt").read_text().splitlines()) for name in ("queries", "candidates"))
    answers = [line for line in printed.splitlines() if '"score"' in line]
    assert len(answers) == 3 + queries * min(10, candidates)  # of the two commands
    assert len(printed.splitlines()) == len(answers) + 4  # and what Python printed


@after("docs/compile.md")
def check_compile(names, printed):
    assert all(parameter.grad is not None for parameter in names["net"].parameters())
    assert names["logits"].shape == (8, 3)


@after("docs/attribution.md")
def check_attribution(names, printed):
    words = "a man is sleeping on a bench . a man is awake ."
    assert [line.split()[1] for line in printed.splitlines()[1:]] == words.split()
    net, label, vectors = names["model"].net.eval(), names["label"], names["vectors"]
    lengths = [torch.tensor([8]), torch.tensor([5])]
    at_zero = net(None, None, *lengths, embedded=[torch.zeros_like(x) for x in vectors])
    difference = (net(None, None, *lengths, embedded=vectors) - at_zero)[0, label].item()
    assert abs(difference) > 0.05
    assert float(sum(x.sum() for x in names["attributions"])) == pytest.approx(difference, abs=1e-3)
    # The same by the layer, whose baseline is the vector of padding: zeros.
    torch.testing.assert_close(names["both"], torch.cat(names["attributions"], 1), rtol=1e-3, atol=1e-4)
    assert names["scores"].shape == (2, 3)
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_attribution_to_the_layer():
    """Several pairs with padding at either end: attribution by vectors equals attribution by layer."""
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    net = esim_fast.ESIM(8, 12, 50, 3).eval()
    ids = torch.tensor([[5, 6, 7], [1, 9, 1]]), torch.tensor([[5, 6], [9, 1]])
    baselines = tuple(torch.ones_like(side) for side in ids)
    by_layer = attr.LayerIntegratedGradients(net, net.embedding).attribute(ids, baselines, target=0, n_steps=8)
    vectors = tuple(net.embedding(side).detach() for side in ids)
    forward = attr.IntegratedGradients(lambda x_p, x_h, p, h: net(p, h, embedded=(x_p, x_h)))
    by_vectors = forward.attribute(vectors, target=0, n_steps=8, additional_forward_args=ids)
    torch.testing.assert_close(by_layer, torch.cat(by_vectors, 1).to(by_layer), rtol=1e-4, atol=1e-6)
    assert by_layer[1, 1].any()
    assert not by_layer[1, [0, 2, 4]].any()
    assert not net.embedding._forward_hooks
