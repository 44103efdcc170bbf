"""Miniatures of known corpora, with exactly the columns, names and spellings of their releases.

docs/corpora.md lists the same files.
"""

import json
from pathlib import Path

import pytest

from esim_fast.data import CorpusFormat, read_pairs
from tests.data.files import write

P, H = 'A man "sleeps", he said.', "He rests."
PARSES = f"( {P} )\t( {H} )\t(ROOT (S {P}))\t(ROOT (S {H}))"


def json_lines(*records: dict[str, object]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def snli_json(label: str) -> dict[str, object]:
    parses = dict(zip(("sentence1_binary_parse", "sentence2_binary_parse"), ("( A )", "( B )"), strict=True))
    ids = {"captionID": "3.jpg#4", "pairID": "3.jpg#4r1n"}
    return {"annotator_labels": ["neutral"], **ids, "gold_label": label, "sentence1": P, **parses, "sentence2": H}


SNLI = (
    "gold_label\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2"
)
GLUE = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2"
SICK = "pair_ID\tsentence_A\tsentence_B\t"

CORPORA = {
    # Stanford's release, as text and as JSON; Hugging Face's export; GLUE's.
    "snli_1.0_train.txt": (
        f"{SNLI}\tcaptionID\tpairID\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\n"
        f"neutral\t{PARSES}\t{P}\t{H}\t3.jpg#4\t3.jpg#4r1n\tneutral\t\t\t\t\n"
        f"-\t{PARSES}\t{P}\t{H}\t3.jpg#4\t3.jpg#4r1n\tneutral\tentailment\t\t\t\n",
        ["neutral", None],
    ),
    "snli_1.0_train.jsonl": (json_lines(snli_json("neutral"), snli_json("-")), ["neutral", None]),
    "snli-hub.csv": (f'premise,hypothesis,label\n"{P.replace(chr(34), chr(34) * 2)}",{H},1\na,b,-1\n', ["1", None]),
    "snli-hub.jsonl": (
        json_lines({"premise": P, "hypothesis": H, "label": 1}, {"premise": P, "hypothesis": H, "label": -1}),
        ["1", None],
    ),
    "glue-snli-train.tsv": (
        f"index\tcaptionID\tpairID\t{GLUE}\tlabel1\tgold_label\n0\t3.jpg#4\t3.jpg#4r1n\t{PARSES}\t{P}\t{H}\tneutral\tneutral\n",
        ["neutral"],
    ),
    "glue-snli-dev.tsv": (
        f"index\tcaptionID\tpairID\t{GLUE}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
        f"0\t3.jpg#4\t3.jpg#4r1n\t{PARSES}\t{P}\t{H}\tneutral\tneutral\tentailment\tneutral\tneutral\tneutral\n",
        ["neutral"],
    ),
    "multinli_1.0_train.txt": (
        f"{SNLI}\tpromptID\tpairID\tgenre\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\n"
        f"neutral\t{PARSES}\t{P}\t{H}\t31193\t31193n\tgovernment\tneutral\n",
        ["neutral"],
    ),
    "multinli_1.0_train.jsonl": (json_lines(snli_json("neutral") | {"genre": "fiction"}), ["neutral"]),
    "glue-mnli-train.tsv": (
        f"index\tpromptID\tpairID\tgenre\t{GLUE}\tlabel1\tgold_label\n0\t31193\t31193n\tfiction\t{PARSES}\t{P}\t{H}\tneutral\tneutral\n",
        ["neutral"],
    ),
    "glue-qnli-train.tsv": (f"index\tquestion\tsentence\tlabel\n0\t{P}\t{H}\tnot_entailment\n", ["not_entailment"]),
    "glue-rte-train.tsv": (f"index\tsentence1\tsentence2\tlabel\n0\t{P}\t{H}\tentailment\n", ["entailment"]),
    "msr_paraphrase_train.txt": (
        f"\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t702876\t702977\t{P}\t{H}\r\n",
        ["1"],
    ),
    "glue-qqp-train.tsv": (
        f"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n133273\t213221\t213222\t{P}\t{H}\t0\n",
        ["0"],
    ),
    "quora_duplicate_questions.csv": (
        'id,qid1,qid2,question1,question2,is_duplicate\n"0","1","2","A man ""sleeps"", he said.","He rests.","1"\n',
        ["1"],
    ),
    "paws-train.tsv": (f"id\tsentence1\tsentence2\tlabel\n1\t{P}\t{H}\t0\n", ["0"]),
    "SICK_train.txt": (f"{SICK}relatedness_score\tentailment_judgment\n1\t{P}\t{H}\t4.5\tNEUTRAL\n", ["NEUTRAL"]),
    "SICK.txt": (
        f"{SICK}entailment_label\trelatedness_score\tentailment_AB\tentailment_BA\tsentence_A_original\tsentence_B_original\t"
        f"sentence_A_dataset\tsentence_B_dataset\tSemEval_set\n1\t{P}\t{H}\tNEUTRAL\t4.5\tA_neutral_B\tB_neutral_A\ta\tb\tF\tF\tTRAIN\n",
        ["NEUTRAL"],
    ),
    "scitail_1.0_train.tsv": (f"{P}\t{H}\tneutral\n{P}\t{H}\tentails\n", ["neutral", "entails"]),
    "scitail_1.0_train.txt": (json_lines(snli_json("entailment"), snli_json("neutral")), ["entailment", "neutral"]),
    "heuristics_train_set.txt": (
        f"{SNLI}\tpairID\theuristic\tsubcase\ttemplate\nnon-entailment\t{PARSES}\t{P}\t{H}\tex0\tlexical_overlap\tln_passive\ttemp1\n",
        ["non-entailment"],
    ),
    "anli-r1-train.jsonl": (
        json_lines({"uid": "0", "model_label": "n", "reason": "", "context": P, "hypothesis": H, "label": "e"}),
        ["e"],
    ),
    "xnli.dev.tsv": (
        f"language\t{SNLI}\tpromptID\tpairID\tgenre\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tsentence1_tokenized\tsentence2_tokenized\tmatch\n"
        f"zh\tneutral\t\t\t\t\t{P}\t{H}\t1\t1\tfacetoface\tneutral\tneutral\tneutral\tneutral\tneutral\t{P}\t{H}\tTrue\n",
        ["neutral"],
    ),
    "multinli.train.zh.tsv": (f"premise\thypo\tlabel\n{P}\t{H}\tcontradictory\n", ["contradictory"]),
    "lcqmc-train.tsv": (f"text_a\ttext_b\tlabel\n{P}\t{H}\t1\n", ["1"]),
    "lcqmc-train.txt": (f"{P}\t{H}\t1\n{P}\t{H}\t0\n", ["1", "0"]),
    "bq-train.tsv": (f"{P}\t{H}\t0\n{P}\t{H}\t1\n", ["0", "1"]),
    "bq-train.csv": ('sentence1,sentence2,label\n"A man ""sleeps"", he said.",He rests.,0\n', ["0"]),
    "afqmc-train.json": (json_lines({"sentence1": P, "sentence2": H, "label": "0"}), ["0"]),
    "ocnli-train.json": (
        json_lines(
            {"level": "medium", "sentence1": P, "sentence2": H, "label": "-", "label0": "neutral", "genre": "lit"}
        ),
        [None],
    ),
    "cmnli-train.json": (json_lines({"sentence1": P, "sentence2": H, "label": "neutral"}), ["neutral"]),
    "paws-x-zh-train.tsv": (f"id\tsentence1\tsentence2\tlabel\n1\t{P}\t{H}\t1\n", ["1"]),
}

STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
SCORED = {
    # GLUE's, Hugging Face's in the forms of GLUE and of sentence-transformers, and SICK's scores beside its labels.
    "glue-stsb-train.tsv": (
        f"{STSB}\tscore\n0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\t{P}\t{H}\t5.000\n"
        f"1\tmain-captions\tMSRvid\t2012test\t0004\tnone\tnone\t{P}\t{H}\t3.800\n",
        ["5", "3.800"],
    ),
    "glue-stsb-hub.jsonl": (
        json_lines(
            {"sentence1": P, "sentence2": H, "label": 3.799999952316284, "idx": 1},
            {"sentence1": P, "sentence2": H, "label": -1.0, "idx": 2},
        ),
        ["3.799999952316284", None],
    ),
    "sentence-transformers-stsb.jsonl": (json_lines({"sentence1": P, "sentence2": H, "score": 0.76}), ["0.76"]),
    "SICK_train.txt": (CORPORA["SICK_train.txt"][0], ["4.5"]),
    "SICK.txt": (CORPORA["SICK.txt"][0], ["4.5"]),
    "scores-last.tsv": (f"{P}\t{H}\t3.75\n{P}\t{H}\t2\n", ["3.75", "2"]),
    "scores-first.tsv": (f"3.75\t{P}\t{H}\n.5\t{P}\t{H}\n", ["3.75", ".5"]),
}


@pytest.mark.parametrize("name", CORPORA)
def test_read_as_they_are(tmp_path, name):
    content, labels = CORPORA[name]
    pairs = list(read_pairs(write(tmp_path, name, content)))
    assert [pair.label for pair in pairs] == labels
    assert pairs[0][:2] == (P, H)
    # A test file has no labels, or no label column.
    assert next(iter(read_pairs(tmp_path / name, labeled=False)))[:2] == (P, H)


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_read_as_they_are(tmp_path, name):
    content, labels = SCORED[name]
    pairs = list(read_pairs(write(tmp_path, name, content), CorpusFormat(scores=True)))
    assert [pair.label for pair in pairs] == labels
    assert pairs[0][:2] == (P, H)
    assert next(iter(read_pairs(tmp_path / name, CorpusFormat(scores=True), labeled=False)))[:2] == (P, H)


def test_quoted_paws(tmp_path):
    """PAWS-Wiki quotes nothing. Quora's release of QQP as .tsv quotes everything and needs --quoted."""
    content = CORPORA["quora_duplicate_questions.csv"][0].replace('","', '"\t"').replace(",", "\t", 5)
    path = write(tmp_path, "quora_duplicate_questions.tsv", content)
    assert [pair[:3] for pair in read_pairs(path, CorpusFormat(quoted=True))] == [(P, H, "1")]


def test_the_documentation_names_them():
    page = (Path(__file__).parents[2] / "docs" / "corpora.md").read_text(encoding="utf-8")
    english = ("SNLI", "MultiNLI", "QNLI", "RTE", "MRPC", "QQP", "PAWS", "SICK", "SciTail", "HANS", "ANLI")
    for corpus in (*english, "STS-B", "SICK relatedness", "XNLI", "LCQMC", "BQ", "AFQMC", "OCNLI", "CMNLI", "PAWS-X"):
        assert f"\n| {corpus} |" in page, corpus
