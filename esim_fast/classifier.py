"""A trained model as people use it: raw text in, labels out."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from .config import check_int, check_number, usable_device
from .data import EncodedPairs, Tokenizer, Vocabulary, get_tokenizer
from .data.parallel import ShouldStop, never
from .errors import DataError, first_line, listed, one_line
from .explanation import Explanation
from .files import replace_file, write_json
from .labels import LabelNames, label_names, positive_or_second
from .model import ESIM
from .ops.backends import backends_of_ops
from .pretrained import CONFIG, LABELS, VOCABULARY, WEIGHTS, directory_of, read_model
from .quantized import inference_precision
from .ranking import best_candidates, output_of, strings
from .scoring import evaluating, scored_pairs
from .terminal import is_watched
from .tokenizing import TOKENIZERS, check_words, name_of, split
from .trainable import Trainable


class Prediction(NamedTuple):
    """What the model says of one pair."""

    label: str
    probabilities: Tensor  # float32 [number of labels] on the CPU, as in Classifier.labels


class Predictions(NamedTuple):
    """What the model says of n pairs, in their order."""

    labels: list[str]
    probabilities: Tensor  # float32 [n, number of labels] on the CPU, columns as in Classifier.labels


class Classifier(Trainable):
    """An ESIM with the vocabulary, the labels and the tokenizer that it was trained with.

    A network with one output is a regression model: it gives each pair a score, and no label.

    Args:
        net: the network; it stays on its device.
        vocabulary: one word for each row of the network's embedding.
        labels: names of the network's outputs, in their order, or a dict of ids by name or of names by id. A regression
            model has one, the score's.
        tokenizer: name of the tokenizer, see :func:`esim_fast.data.get_tokenizer`, or a function of yours.
        training: how the network was trained, as JSON has it; kept with the model, for those who come after.
        precision: "fp32"; "bf16" or (on a GPU) "fp16", under autocast; "int8", with both LSTMs and the large
            linear layers quantized, on CPUs with VNNI; or "auto", int8 where supported, else fp32. It may be
            changed later.
        temperature: logits are divided by it before the softmax, which makes probabilities less (above 1) or more
            certain (Guo et al. 2017).
        threshold: with two labels, the positive one is given from this probability on. None: the likelier label.

    Attributes:
        positive: of two labels, the index of the one that ``threshold`` is for: ``entailment``, else ``1``, else the
            second one. None if there are more labels, or one.

    Raises:
        TypeError: labels are not strings, or in no order; temperature or threshold is no number.
        ValueError: vocabulary or labels do not fit the network, a label is repeated, the temperature is not positive,
            the threshold lies outside 0..1 or is for other than two labels, or the tokenizer or the precision is
            unknown or cannot be had on the network's device.
        DataError: the tokenizer cannot be imported.
    """

    def __init__(
        self,
        net: ESIM,
        vocabulary: Vocabulary,
        labels: LabelNames,
        tokenizer: str | Tokenizer = "nltk",
        training: dict[str, Any] | None = None,
        precision: str = "fp32",
        *,
        temperature: float = 1.0,
        threshold: float | None = None,
    ) -> None:
        inference_precision(precision, net.device)
        if len(vocabulary) != net.config.vocab_size:
            raise ValueError(f"the network has {net.config.vocab_size} words, the vocabulary {len(vocabulary)}")
        names = label_names(labels)
        if len(names) != net.config.num_labels:
            got = f"{len(names)}: {listed(names)}" if names else "none"
            raise ValueError(one_line(f"the network has {net.config.num_labels} labels, got {got}"))
        if not isinstance(tokenizer, str) and not callable(tokenizer):
            raise TypeError(f"tokenizer must be a name or a function, got {tokenizer!r}")
        self.net, self.vocabulary, self.labels, self.tokenizer = net, vocabulary, names, tokenizer
        self.training, self.precision = training, precision
        self.directory: Path | None = None  # that it was read from
        self.positive = names.index(cast(str, positive_or_second(names))) if len(names) == 2 else None
        if not 0 < check_number("temperature", temperature) < math.inf:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if threshold is not None:
            if not 0 <= check_number("threshold", threshold) <= 1:
                raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
            if self.positive is None:
                raise ValueError(f"a threshold is for two labels, and the network has {len(names)}")
        self.temperature, self.threshold = temperature, threshold
        self._tokenize = get_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer

    @property
    def task(self) -> str:
        """ "regression" for a network with one output, else "classification"."""
        return "regression" if len(self.labels) == 1 else "classification"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.net.device

    def to(self, device: torch.device | str) -> "Classifier":
        """Moves the network to a device, and returns this model.

        Raises:
            ValueError: there is no such device here, or it cannot run the model's precision or backend; nothing is
                moved then.
        """
        device = usable_device(device)
        inference_precision(self.precision, device)
        for backend in {getattr(module, "backend", None) for module in self.net.modules()}:
            backends_of_ops(backend, device)
        self.net.to(device)
        return self

    @overload
    def predict(
        self, pairs: tuple[str, str], *, batch_size: int = 256, show_progress_bar: bool | None = None
    ) -> Prediction | float: ...

    @overload
    def predict(
        self, pairs: Iterable[tuple[str, str]], *, batch_size: int = 256, show_progress_bar: bool | None = None
    ) -> Predictions | Tensor: ...

    def predict(
        self,
        pairs: tuple[str, str] | Iterable[tuple[str, str]],
        *,
        batch_size: int = 256,
        show_progress_bar: bool | None = None,
    ) -> Prediction | Predictions | Tensor | float:
        """Labels and probabilities of (premise, hypothesis) pairs of raw text, or of a single pair.

        Args:
            pairs: any number of pairs, or one.
            batch_size: pairs that the network gets at a time; those of similar length go together.
            show_progress_bar: on stderr. None: where that is a terminal, if it takes longer than a second.

        Returns:
            (labels, probabilities) of n pairs: a list of n names, and float32 ``[n, number of labels]`` with columns in
            the order of ``self.labels``. Of one pair (label, probabilities): a name, and ``[number of labels]``. A
            regression model gives scores instead: float32 ``[n]``, or of one pair a float.

        Raises:
            TypeError: an entry is not a pair of strings.
        """
        if isinstance(pairs, str):
            raise TypeError(f"expected (premise, hypothesis) pairs, or one of them, got the string {pairs[:40]!r}")
        if _is_pair(pairs):
            answers = self.predict([cast(tuple[str, str], pairs)])
            if isinstance(answers, Tensor):
                return answers.item()
            return Prediction(answers.labels[0], answers.probabilities[0])
        pairs = list(cast(Iterable[tuple[str, str]], pairs))
        for index, pair in enumerate(pairs):
            if not _is_pair(pair):
                raise TypeError(f"pairs[{index}] must be a (premise, hypothesis) pair of strings, got {pair!r}")
        with _bar(len(pairs), show_progress_bar) as bar:
            premises, hypotheses = ([self.encode(pair[side]) for pair in pairs] for side in (0, 1))
            encoded = EncodedPairs(premises, hypotheses, None)
            logits = self.logits(encoded, batch_size=batch_size, on_scored=bar.update)
        if self.task == "regression":
            return logits[:, 0]
        probabilities = self.probabilities(logits)
        return Predictions([self.labels[index] for index in self.decide(probabilities)], probabilities)

    @overload
    def rank(
        self,
        query: str,
        candidates: Iterable[str],
        top_k: int | None = 10,
        label: str | None = None,
        *,
        return_documents: bool = False,
        batch_size: int = 256,
    ) -> list[dict[str, Any]]: ...

    @overload
    def rank(
        self,
        query: list[str] | tuple[str, ...],
        candidates: Iterable[str],
        top_k: int | None = 10,
        label: str | None = None,
        *,
        return_documents: bool = False,
        batch_size: int = 256,
    ) -> list[list[dict[str, Any]]]: ...

    def rank(
        self,
        query: str | list[str] | tuple[str, ...],
        candidates: Iterable[str],
        top_k: int | None = 10,
        label: str | None = None,
        *,
        return_documents: bool = False,
        batch_size: int = 256,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """The candidates that go best with a query, as sentence-transformers' ``CrossEncoder.rank`` gives them.

        The query is the premise and each candidate a hypothesis. Nothing has gradients. A sentence is encoded once for
        all pairs that are worked on together.

        Args:
            query: a sentence, or a list of them.
            candidates: sentences, which are read once, some thousand at a time. With ``top_k`` they need not fit into
                memory.
            top_k: how many are returned at most; None is all.
            label: the label by whose probability they are ranked; None is ``entailment``, else ``1``. A regression
                model ranks by its score.
            return_documents: whether the result holds the candidates' texts.
            batch_size: pairs that the network gets at a time at most.

        Returns:
            ``{"corpus_id": place among the candidates, "score": …}`` of each, and ``"text"`` with ``return_documents``.
            The best one comes first, and of equal ones the earlier one. For a list of queries a list of such lists.

        Raises:
            TypeError: query or candidates are not strings, or ``top_k`` is no integer.
            ValueError: there are no candidates, ``top_k`` is not positive, or the model has no such label or none that
                is called ``entailment`` or ``1``.
            DataError: as :meth:`encode`.
            FloatingPointError: the network gives something else than finite numbers.
        """
        if top_k is not None:
            check_int("top_k", top_k, 1, "an int or None")
        output = output_of(self, label)
        queries = [query] if isinstance(query, str) else list(strings("query", query))
        documents = enumerate(strings("candidates", candidates))
        found = best_candidates(self, queries, documents, top_k=top_k, output=output, batch_size=batch_size)
        results = [[one.as_dict(with_text=return_documents) for one in of_query] for of_query in found]
        if not all(results):
            raise ValueError("expected candidates, got none")
        return results[0] if isinstance(query, str) else results

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each label: logits ``[n, number of labels]`` after temperature and softmax, in the same dtype."""
        return (logits if self.temperature == 1 else logits / self.temperature).softmax(1)

    def decide(self, probabilities: Tensor) -> Tensor:
        """Which label is given: the likeliest, or as the threshold says; int64 ``[n]``, indices of ``self.labels``."""
        if self.threshold is None or self.positive is None:
            return probabilities.argmax(1)
        return torch.where(probabilities[:, self.positive] >= self.threshold, self.positive, 1 - self.positive)

    def encode(self, sentence: str) -> list[int]:
        """The word ids of a sentence.

        Raises:
            DataError: the tokenizer, a function of the user's, raises something or returns something else than words.
        """
        return self.vocabulary.encode(self.split(sentence))

    def split(self, sentence: str) -> list[str]:
        """The words of a sentence; raises as :meth:`encode` does."""
        name = name_of(self.tokenizer)
        words = split(sentence, self._tokenize, name)
        if name not in TOKENIZERS:
            check_words(words, sentence, name)
        return words

    def logits(
        self,
        pairs: EncodedPairs,
        *,
        batch_size: int = 256,
        should_stop: ShouldStop = never,
        on_scored: Callable[[int], object] = lambda count: None,
    ) -> Tensor:
        """Raw scores of encoded pairs, without dropout: float32 ``[n, number of labels]`` on the CPU.

        Args:
            on_scored: called with how many pairs were scored, after each batch.

        Raises:
            KeyboardInterrupt: ``should_stop()`` said so after a batch.
        """
        result = torch.empty(len(pairs), len(self.labels))
        for indices, scores in scored_pairs(self.net, pairs, batch_size, precision=self.precision):
            result[indices] = scores
            on_scored(len(indices))
            if should_stop():
                raise KeyboardInterrupt
        return result

    def explain(self, premise: str, hypothesis: str) -> Explanation:
        """Which words of a pair look at which, with what the model says of it: the soft alignment's weights.

        Raises:
            ValueError: a sentence has no words.
        """
        words = {"premise": self.split(premise), "hypothesis": self.split(hypothesis)}
        for name, sentence in words.items():
            if not sentence:
                raise ValueError(f"the {name} has no words: there is nothing to look at")
        ids = [torch.tensor([self.vocabulary.encode(sentence)], device=self.net.device) for sentence in words.values()]
        with evaluating(self.net), torch.no_grad():
            alpha, beta = (weights[0].float().cpu() for weights in self.net.attention(*ids))
        answer = self.predict((premise, hypothesis))
        if isinstance(answer, Prediction):
            label, by_label = answer.label, dict(zip(self.labels, answer.probabilities.tolist(), strict=True))
        else:
            label, by_label = f"{self.labels[0]} {answer:.4g}", {}
        unknown = {word for sentence in words.values() for word in sentence if word not in self.vocabulary}
        return Explanation(**words, alpha=alpha, beta=beta, label=label, probabilities=by_label, unknown=unknown)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes weights, configuration, vocabulary and labels; each file is replaced only by a complete one.

        Raises:
            OSError: the directory cannot be written to.
        """
        directory = Path(directory)
        self.save_description(directory)
        weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in self.net.state_dict().items()})
        replace_file(directory / WEIGHTS, lambda path: path.write_bytes(weights))

    def save_description(self, directory: str | os.PathLike[str]) -> None:
        """Writes what :meth:`save_pretrained` does, but for the weights.

        Raises:
            OSError: the directory cannot be written to.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"model": "ESIM", **asdict(self.net.config), "tokenizer": name_of(self.tokenizer)}
        if self.temperature != 1:
            config["temperature"] = self.temperature
        if self.threshold is not None:
            config["threshold"] = self.threshold
        if self.training is not None:
            config["training"] = self.training
        write_json(directory / CONFIG, config)
        write_json(directory / LABELS, self.labels)
        replace_file(directory / VOCABULARY, self.vocabulary.save)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        precision: str = "fp32",
        backend: str | None = None,
        tokenizer: str | Tokenizer | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> "Classifier":
        """Reads what :meth:`save_pretrained` wrote; nothing in the directory is executed.

        Args:
            directory: of the model; or, where there is none of this name, ``"user/name"`` of a model on the Hugging
                Face hub (with the extra ``esim_fast[hub]``), of which four files are fetched and kept in its cache.
            device: where the network runs; None is the GPU where torch finds one, else the CPU.
            precision: as for :class:`Classifier`.
            backend: as for :class:`esim_fast.ESIM`.
            tokenizer: the function, or ``"module:function"``, that the model was trained with, if it was one of yours:
                what a directory names is not imported before you have said so.
            revision: a branch, a tag or a commit of a model on the hub.
            token: of the hub, for a private model; None is the one that its library knows.

        Raises:
            DataError: a part is missing, malformed, or does not fit the others; the message names the file. Or the hub
                has no such model, or cannot be reached.
            ValueError: there is no such device here, or it cannot run the precision or the backend.
        """
        device = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        inference_precision(precision, device)
        backends_of_ops(backend, device)
        directory = directory_of(os.fspath(directory), revision, token)
        parts = read_model(directory, backend, tokenizer)
        try:
            model = cls(**parts._asdict())
        except (TypeError, ValueError) as error:
            raise DataError(f"{directory / CONFIG}: {first_line(error)}") from error
        model.net.to(device).eval()
        model.precision, model.directory = precision, directory
        return model


def _bar(count: int, shown: bool | None) -> tqdm:
    """For pairs that are scored; None shows it where somebody may look, if there is time to."""
    disable = not (is_watched() if shown is None else shown)
    return tqdm(total=count, unit="pair", delay=1 if shown is None else 0, leave=False, disable=disable)


def _is_pair(value: Any) -> bool:
    """Whether this is a (premise, hypothesis) pair; an iterator is none."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    return is_sequence and len(value) == 2 and all(isinstance(sentence, str) for sentence in value)
