"""The high-level API: a trained model that takes raw text and returns labels."""

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

from .captured import CapturedForward
from .config import check_int, check_number, usable_device
from .data import EncodedPairs, Tokenizer, Vocabulary, get_tokenizer
from .data.parallel import ShouldStop, never
from .errors import DataError, first_line, listed, one_line
from .explanation import Explanation
from .files import replace_file, write_json
from .graphs import wants_graphs
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
    """The prediction for one pair.

    Attributes:
        label: the predicted label.
        probabilities: float32 ``[number of labels]`` on the CPU, in the order of ``Classifier.labels``.
    """

    label: str
    probabilities: Tensor


class Predictions(NamedTuple):
    """The predictions for n pairs, in input order.

    Attributes:
        labels: the predicted labels.
        probabilities: float32 ``[n, number of labels]`` on the CPU, columns in the order of ``Classifier.labels``.
    """

    labels: list[str]
    probabilities: Tensor


class Classifier(Trainable):
    """A trained model: an ESIM network with its vocabulary, labels and tokenizer.

    A network with one output is a regression model: it returns a score instead of a label.

    Args:
        net: the network; it stays on its device.
        vocabulary: one word for each row of the network's embedding.
        labels: names of the network's outputs in order, or a dict that maps names to ids or ids to names. A regression
            model has one, the name of the score.
        tokenizer: name of a tokenizer (see ``esim_fast.data.get_tokenizer``), or your own function.
        training: how the network was trained, as JSON-compatible values; saved with the model.
        precision: ``"fp32"``; ``"bf16"`` or, on a GPU, ``"fp16"`` (both under autocast); ``"int8"``, which quantizes
            both LSTMs and the large linear layers and needs a CPU with VNNI; or ``"auto"``, int8 where supported, else
            fp32. You can change it later.
        temperature: logits are divided by it before the softmax. Values above 1 make probabilities less extreme, values
            below 1 more (Guo et al. 2017).
        threshold: with two labels, predict the positive one from this probability on. None predicts the likelier label.
        cuda_graphs: ``"on"`` runs the network as CUDA graphs (``esim_fast.captured.CapturedForward``), which needs an
            NVIDIA GPU; every pair is then computed whole, even if sentences repeat. ``"off"`` does not. ``"auto"`` is
            ``"off"``, because captured forward passes have not run on a GPU yet. You can change it later.

    Attributes:
        positive: index of the label that ``threshold`` applies to: ``entailment``, else ``1``, else the second of the
            two. None unless there are exactly two labels.

    Raises:
        TypeError: labels are not strings or have no order, or temperature or threshold is not a number.
        ValueError: vocabulary or labels do not fit the network, a label is repeated, the temperature is not positive,
            the threshold lies outside 0..1, a threshold is given and there are not two labels, the tokenizer is
            unknown, or the precision or ``cuda_graphs`` is unknown or unavailable on the network's device.
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
        cuda_graphs: str = "auto",
    ) -> None:
        inference_precision(precision, net.device)
        wants_graphs(cuda_graphs, net.device)
        if len(vocabulary) != net.config.vocab_size:
            raise ValueError(
                f"vocabulary must have {net.config.vocab_size} words, one for each row of the embedding, "
                f"got {len(vocabulary)}"
            )
        names = label_names(labels)
        if len(names) != net.config.num_labels:
            got = f"{len(names)}: {listed(names)}" if names else "none"
            raise ValueError(one_line(f"labels must name the network's {net.config.num_labels} outputs, got {got}"))
        if not isinstance(tokenizer, str) and not callable(tokenizer):
            raise TypeError(f"tokenizer must be a name or a function, got {tokenizer!r}")
        self.net, self.vocabulary, self.labels, self.tokenizer = net, vocabulary, names, tokenizer
        self.training, self.precision, self.cuda_graphs = training, precision, cuda_graphs
        self._captured: CapturedForward | None = None
        self.directory: Path | None = None  # where it was loaded from
        self.positive = names.index(cast(str, positive_or_second(names))) if len(names) == 2 else None
        if not 0 < check_number("temperature", temperature) < math.inf:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if threshold is not None:
            if not 0 <= check_number("threshold", threshold) <= 1:
                raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
            if self.positive is None:
                raise ValueError(f"threshold needs a model with two labels, this one has {len(names)}")
        self.temperature, self.threshold = temperature, threshold
        self._tokenize = get_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer

    @property
    def task(self) -> str:
        """``"regression"`` for a network with one output, else ``"classification"``."""
        return "regression" if len(self.labels) == 1 else "classification"

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return self.net.device

    @property
    def captured(self) -> CapturedForward | None:
        """The network's forward pass as CUDA graphs, with statistics; None unless ``cuda_graphs`` is on.

        Graphs are kept between calls, but neither copied nor saved with the model.
        """
        if not wants_graphs(self.cuda_graphs, self.net.device):
            self._captured = None
            return None
        precision = inference_precision(self.precision, self.net.device, self.net)
        captured = self._captured
        if captured is None or captured.net is not self.net or captured.precision != precision:
            captured = self._captured = CapturedForward(self.net, precision)
        return captured

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_captured": None}

    def to(self, device: torch.device | str) -> "Classifier":
        """Move the network to a device and return this model.

        Raises:
            ValueError: the device does not exist here, or cannot run the model's precision, backend or CUDA graphs.
                Nothing is moved then.
        """
        device = usable_device(device)
        inference_precision(self.precision, device)
        wants_graphs(self.cuda_graphs, device)
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
        """Predict labels and probabilities for (premise, hypothesis) pairs of raw text.

        Args:
            pairs: any number of pairs, or a single pair.
            batch_size: pairs per forward pass; pairs of similar length are batched together.
            show_progress_bar: whether to show a progress bar on stderr. None shows it on a terminal if the work takes
                more than a second.

        Returns:
            For n pairs ``(labels, probabilities)``: a list of n names, and float32 ``[n, number of labels]`` with
            columns in the order of ``self.labels``. For a single pair ``(label, probabilities)``: a name, and float32
            ``[number of labels]``. A regression model returns scores instead: float32 ``[n]``, or a float for a single
            pair.

        Raises:
            TypeError: an entry is not a pair of strings.
        """
        if isinstance(pairs, str):
            raise TypeError(
                f"pairs must be (premise, hypothesis) pairs or one such pair, got the string {pairs[:40]!r}"
            )
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
        """Rank candidates for a query, in the format of sentence-transformers' ``CrossEncoder.rank``.

        The query is the premise and each candidate a hypothesis. No gradients are computed. Each sentence is encoded
        once for all the pairs that are scored together, except with CUDA graphs.

        Args:
            query: a sentence, or a list of sentences.
            candidates: sentences, read once, a few thousand at a time. With ``top_k`` they need not fit into memory.
            top_k: how many candidates to return at most; None returns all.
            label: the label whose probability ranks them; None is ``entailment``, else ``1``. A regression model ranks
                by its score.
            return_documents: whether to return the candidates' texts as well.
            batch_size: largest number of pairs per forward pass.

        Returns:
            A list of ``{"corpus_id": index of the candidate, "score": …}``, with ``"text"`` if ``return_documents`` is
            set. The best candidate comes first; ties keep the candidates' order. For a list of queries, a list of such
            lists.

        Raises:
            TypeError: query or candidates are not strings, or ``top_k`` is not an integer.
            ValueError: there are no candidates, ``top_k`` is not positive, the model has no such label, or ``label`` is
                None and no label is called ``entailment`` or ``1``.
            DataError: the tokenizer fails, as in ``encode``.
            FloatingPointError: the network returns NaN or infinity.
        """
        if top_k is not None:
            check_int("top_k", top_k, 1, "an int or None")
        output = output_of(self, label)
        queries = [query] if isinstance(query, str) else list(strings("query", query))
        documents = enumerate(strings("candidates", candidates))
        found = best_candidates(self, queries, documents, top_k=top_k, output=output, batch_size=batch_size)
        results = [[one.as_dict(with_text=return_documents) for one in of_query] for of_query in found]
        if not all(results):
            raise ValueError("candidates must not be empty")
        return results[0] if isinstance(query, str) else results

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax of logits ``[n, number of labels]`` after temperature, in the same dtype."""
        return (logits if self.temperature == 1 else logits / self.temperature).softmax(1)

    def decide(self, probabilities: Tensor) -> Tensor:
        """Return the index of each predicted label, int64 ``[n]``: the likeliest, or the one that the threshold
        selects.
        """
        if self.threshold is None or self.positive is None:
            return probabilities.argmax(1)
        return torch.where(probabilities[:, self.positive] >= self.threshold, self.positive, 1 - self.positive)

    def encode(self, sentence: str) -> list[int]:
        """Return the word ids of a sentence.

        Raises:
            DataError: a custom tokenizer raises an exception or returns something other than words.
        """
        return self.vocabulary.encode(self.split(sentence))

    def split(self, sentence: str) -> list[str]:
        """Return the words of a sentence. Raises the same errors as ``encode``."""
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
        """Compute the logits of encoded pairs without dropout: float32 ``[n, number of labels]`` on the CPU.

        Args:
            pairs: encoded pairs.
            batch_size: pairs per forward pass.
            should_stop: checked after each batch.
            on_scored: called after each batch with the number of pairs in it.

        Raises:
            KeyboardInterrupt: ``should_stop()`` returned True.
        """
        result = torch.empty(len(pairs), len(self.labels))
        how: dict[str, Any] = {"precision": self.precision, "forward": self.captured}
        for indices, scores in scored_pairs(self.net, pairs, batch_size, **how):
            result[indices] = scores
            on_scored(len(indices))
            if should_stop():
                raise KeyboardInterrupt
        return result

    def explain(self, premise: str, hypothesis: str) -> Explanation:
        """Return the soft alignment between the words of a pair, together with the prediction.

        Raises:
            ValueError: a sentence has no words.
        """
        words = {"premise": self.split(premise), "hypothesis": self.split(hypothesis)}
        for name, sentence in words.items():
            if not sentence:
                raise ValueError(f"the {name} has no words to explain")
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
        """Save weights, configuration, vocabulary and labels. Each file is replaced atomically.

        Raises:
            OSError: the directory cannot be written to.
        """
        directory = Path(directory)
        self.save_description(directory)
        weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in self.net.state_dict().items()})
        replace_file(directory / WEIGHTS, lambda path: path.write_bytes(weights))

    def save_description(self, directory: str | os.PathLike[str]) -> None:
        """Save everything that ``save_pretrained`` does except the weights.

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
        bilstm_backend: str | None = None,
        tokenizer: str | Tokenizer | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cuda_graphs: str = "auto",
    ) -> "Classifier":
        """Load a model that ``save_pretrained`` wrote. Nothing in the directory is executed.

        Args:
            directory: the model's directory. If there is no such directory, ``"user/name"`` of a model on the Hugging
                Face Hub (needs the extra ``esim_fast[hub]``); its four files are downloaded and cached.
            device: device for the network; None is the GPU if torch finds one, else the CPU.
            precision: as for ``Classifier``.
            backend: as for ``esim_fast.ESIM``.
            bilstm_backend: as for ``esim_fast.ESIM``.
            tokenizer: if the model was trained with a custom tokenizer, that function or its ``"module:function"``.
                Code named in a model directory is never imported unless you pass it here.
            revision: a branch, tag or commit of a model on the Hub.
            token: Hub token for a private model; None uses the one that ``huggingface_hub`` has stored.
            cuda_graphs: as for ``Classifier``.

        Raises:
            DataError: a file is missing, malformed, or does not fit the others (the message names it), the Hub has no
                such model, or the Hub cannot be reached.
            ValueError: the device does not exist here, or cannot run the precision, the backend or CUDA graphs.
        """
        device = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        inference_precision(precision, device)
        backends_of_ops(backend, device, bilstm_backend)
        wants_graphs(cuda_graphs, device)
        directory = directory_of(os.fspath(directory), revision, token)
        parts = read_model(directory, backend, bilstm_backend, tokenizer)
        try:
            model = cls(**parts._asdict())
        except (TypeError, ValueError) as error:
            raise DataError(f"{directory / CONFIG}: {first_line(error)}") from error
        model.net.to(device).eval()
        model.precision, model.cuda_graphs, model.directory = precision, cuda_graphs, directory
        return model


def _bar(count: int, shown: bool | None) -> tqdm:
    """A progress bar for scored pairs. With ``shown=None`` it appears on a terminal only, after one second."""
    disable = not (is_watched() if shown is None else shown)
    return tqdm(total=count, unit="pair", delay=1 if shown is None else 0, leave=False, disable=disable)


def _is_pair(value: Any) -> bool:
    """Whether this is a (premise, hypothesis) pair. Iterators do not count."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    return is_sequence and len(value) == 2 and all(isinstance(sentence, str) for sentence in value)
