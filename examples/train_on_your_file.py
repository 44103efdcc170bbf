"""Train ESIM on your own file, measure how good it is, and see which words it compares.

    python train_on_your_file.py pairs.csv my-model

The file has two sentences and a label in each row. Its columns are found by their names (premise and hypothesis,
sentence1 and sentence2, question1 and question2, ..., and label); without a header they are label, sentence, sentence,
or sentence, sentence, label. It may be .csv, .tsv, .jsonl, .json or .parquet.
"""

import argparse
import random
import sys
from pathlib import Path

from esim_fast import Classifier, metrics
from esim_fast.data import read_pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="labeled pairs")
    parser.add_argument("output", type=Path, help="where the model goes, a new directory")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--vectors", help="a file of word vectors, such as glove.840B.300d.txt")
    parser.add_argument("--tokenizer", default="nltk", help="for Chinese: characters")
    try:
        train_on(parser.parse_args())
    except (OSError, ValueError) as error:  # a DataError, which names the file and the line, is a ValueError
        sys.exit(f"error: {error}")


def train_on(options):
    pairs = [pair for pair in read_pairs(options.file) if pair.label is not None]
    train, dev, test = split(pairs)
    print(f"{len(train):,} pairs to train on, {len(dev):,} to choose the best epoch, {len(test):,} to test")

    history = Classifier.fit(
        *texts_and_labels(train),
        dev=texts_and_labels(dev),
        epochs=options.epochs,
        hidden_size=options.hidden_size,
        dropout=0.2,
        learning_rate=1e-3,
        vectors=options.vectors,
        tokenizer=options.tokenizer,
        output=options.output,
        on_epoch=lambda epoch: print(f"epoch {epoch.epoch}: dev accuracy {epoch.dev_accuracy:.1%}"),
    )
    model = history.model

    texts, gold = texts_and_labels(test)
    predicted = model.predict(texts).labels
    print_figures(gold, predicted)

    # The first mistake, or the first pair if there is none.
    wrong = [index for index, label in enumerate(gold) if predicted[index] != label]
    model.explain(*texts[wrong[0] if wrong else 0]).save(options.output / "attention.html")
    print(f"the model is in {options.output}; open {options.output / 'attention.html'} in a browser")


def split(pairs):
    """Eight tenths to train on, one for dev and one for test. All pairs of a premise stay together, so that the model
    is tested on premises that it has never seen."""
    premises = sorted({pair.premise for pair in pairs})
    random.Random(0).shuffle(premises)
    tenth = max(1, len(premises) // 10)
    parts = premises[2 * tenth :], premises[:tenth], premises[tenth : 2 * tenth]
    return [[pair for pair in pairs if pair.premise in part] for part in map(set, parts)]


def texts_and_labels(pairs):
    return [(pair.premise, pair.hypothesis) for pair in pairs], [pair.label for pair in pairs]


def print_figures(gold, predicted):
    names = sorted({*gold, *predicted})
    gold, predicted = ([names.index(label) for label in labels] for labels in (gold, predicted))
    print(f"test accuracy {metrics.accuracy(gold, predicted):.1%}")
    print("precision  recall      F1   pairs  label")
    for name, *figures, support in zip(names, *metrics.precision_recall_f1(gold, predicted, len(names)), strict=True):
        print(*(f"{figure:9.1%}" for figure in figures), f"{support:7,}  {name}", sep="")


if __name__ == "__main__":
    main()
