"""Explanations show the network's weights and every word, and their pages load and execute nothing else."""

import json
import re
import warnings
from unittest import mock

import pytest
import torch

import esim_fast
from esim_fast import Classifier
from esim_fast.data import Vocabulary
from esim_fast.explanation import Explanation, picture

font_manager = pytest.importorskip("matplotlib.font_manager")
CHINESE = "男人在公园里睡觉"


@pytest.fixture
def model():
    torch.manual_seed(0)
    words = ["<unk>", "<pad>", "a", "man", "person", "rests", "sleeps", "."]
    return Classifier(esim_fast.ESIM(6, 5, len(words), 3), Vocabulary(words), ["no", "yes", "maybe"])


@pytest.fixture
def explanation(model):
    return model.explain("A man sleeps.", "A tired person rests")


def long_explanation(premise, hypothesis):
    weights = torch.rand(len(premise), len(hypothesis))
    options = {"label": "yes", "probabilities": {"yes": 1.0}, "unknown": set(premise[:1])}
    return Explanation(premise, hypothesis, weights.softmax(1), weights.softmax(0), **options)


def test_the_weights_are_the_networks(model, explanation):
    assert explanation.premise == ["a", "man", "sleeps", "."]
    assert explanation.hypothesis == ["a", "tired", "person", "rests"]
    assert explanation.unknown == {"tired"}
    assert model.net.training, "the network was left in another mode"
    model.net.eval()
    alpha, beta = model.net.attention(torch.tensor([[2, 3, 6, 7]]), torch.tensor([[2, 0, 4, 5]]))
    # Products with and without gradients may round differently.
    torch.testing.assert_close(explanation.alpha, alpha[0].detach())
    torch.testing.assert_close(explanation.beta, beta[0].detach())
    torch.testing.assert_close(explanation.alpha.sum(1), torch.ones(4))
    torch.testing.assert_close(explanation.beta.sum(0), torch.ones(4))
    label, probabilities = model.predict(("A man sleeps.", "A tired person rests"))
    assert (explanation.label, list(explanation.probabilities)) == (label, ["no", "yes", "maybe"])
    assert list(explanation.probabilities.values()) == probabilities.tolist()


class TestPage:
    def embedded(self, text):
        return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)[1])

    def test_it_has_the_numbers_of_the_json_file_and_loads_nothing(self, explanation, tmp_path):
        for name in ("map.json", "map.html"):
            explanation.save(tmp_path / name)
        numbers = json.loads((tmp_path / "map.json").read_text(encoding="utf-8"))
        torch.testing.assert_close(torch.tensor(numbers["beta"]), explanation.beta, rtol=0, atol=1e-4)
        text = (tmp_path / "map.html").read_text(encoding="utf-8")
        assert self.embedded(text) == numbers == explanation.as_dict()
        assert not re.search(r"https?:|src=|@import|url\(", text)
        assert len(text) < 20_000

    def test_words_are_never_markup(self, tmp_path):
        words = ["</script>", "<script>alert(1)</script>", "<!--", "{{content}}", "$&", "\u2028", CHINESE]
        long_explanation(words, words).save(tmp_path / "map.html")
        text = (tmp_path / "map.html").read_text(encoding="utf-8")
        assert self.embedded(text)["premise"] == words
        assert text.count("<script") == text.count("</script>") == 2


class TestPicture:
    def draw(self, explanation, path):
        """Draws a picture and returns its texts."""
        from matplotlib.text import Text

        drawn, draw = set(), Text.draw

        def noticed(text, *arguments, **options):
            drawn.add(text.get_text())
            return draw(text, *arguments, **options)

        with mock.patch.object(Text, "draw", noticed), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # such as a missing glyph
            explanation.save(path)
        assert path.read_bytes().startswith(b"\x89PNG")
        return drawn

    def test_every_word_is_drawn(self, tmp_path):
        premise, hypothesis = ([f"{side}{i}" for i in range(n)] for side, n in (("p", 30), ("h", 20)))
        assert {*premise, *hypothesis} <= self.draw(long_explanation(premise, hypothesis), tmp_path / "map.png")
        # A dollar sign starts no formula, and a long word is shortened.
        assert r"\$5\$" in self.draw(long_explanation(["$5$", "_", "^", "\\"], ["$"]), tmp_path / "map.png")
        drawn = self.draw(long_explanation(["a" * 3000], ["b" * 3000]), tmp_path / "map.png")
        assert "a" * 39 + "…" in drawn
        assert (tmp_path / "map.png").stat().st_size < 200_000

    def test_unknown_words_need_no_other_font(self, tmp_path):
        """They are gray and not slanted, because slanted fonts have fewer characters."""
        with mock.patch.object(picture.warnings, "filterwarnings"):  # makes missing glyphs errors
            self.draw(long_explanation(["مرحبا", "b"], ["c$_$"]), tmp_path / "map.png")

    def test_one_word_and_hundreds(self, tmp_path):
        self.draw(long_explanation(["a"], ["b"]), tmp_path / "small.png")
        self.draw(long_explanation(["a"] * 400, ["b"] * 20), tmp_path / "large.png")
        assert (tmp_path / "large.png").stat().st_size < 5_000_000

    def test_chinese_if_a_font_has_it(self, tmp_path):
        fonts = [path for path in font_manager.findSystemFonts() if "CJK" in path or "wqy" in path]
        if not fonts:
            pytest.skip("no Chinese font is installed here")
        assert set(CHINESE) <= self.draw(long_explanation([*CHINESE], [*CHINESE]), tmp_path / "map.png")

    def test_one_warning_for_characters_that_no_font_has(self, tmp_path):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with mock.patch.object(picture, "_drawn_by", return_value=set("abc")):
                long_explanation([*CHINESE], ["a"]).save(tmp_path / "map.png")
        ours = [str(warning.message) for warning in caught if warning.category is UserWarning]
        assert len(ours) == 1
        assert ours[0].startswith("no installed font has ")


def test_mistakes(model, explanation, tmp_path):
    with pytest.raises(ValueError, match=r"^the hypothesis has no words to explain$"):
        model.explain("A man", " ")
    with pytest.raises(ValueError, match=r"map\.gif: expected a name that ends in \.png, \.html or \.json$"):
        explanation.save(tmp_path / "map.gif")
    assert not list(tmp_path.iterdir())
