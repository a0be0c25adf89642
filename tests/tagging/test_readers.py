"""Readers of tagged text against other readers, and what they say of bad lines."""

import random

import pytest

from gradvac.errors import CorpusError, RecipeError
from gradvac.tagging.readers import read_tagged
from gradvac.translation.account import Account

conllu = pytest.importorskip("conllu")


def read(path, format, policy="fail"):
    account = Account(policy)
    return read_tagged(str(path), format, account), account


def made_conllu(seed):
    """Sentences with comments, multiword tokens and empty nodes wherever they may stand."""
    rng = random.Random(seed)
    lines = []
    for n in range(30):
        lines.append(f"# sent_id = s{n}\n# text = whatever")
        if rng.random() < 0.3:
            lines.append("0.1\tgone\t_\tVERB" + "\t_" * 6)
        length = rng.randint(1, 8)
        word = 1
        while word <= length:
            if rng.random() < 0.3 and word < length:
                lines.append(f"{word}-{word + 1}\tdu" + "\t_" * 8)
            tag = rng.choice(["NOUN", "VERB", "X", "PUNCT"])
            lines.append(f"{word}\tw {word}é\tw\t{tag}\t_\tA=b\t0\troot\t_\tSpaceAfter=No")
            if rng.random() < 0.3:
                lines.append(f"{word}.1\tgone\t_\tVERB" + "\t_" * 6)
            word += 1
        lines.append("")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("seed", range(3))
def test_conllu_reads_what_the_conllu_package_reads(seed, tmp_path):
    text = made_conllu(seed)
    file = tmp_path / "a.conllu"
    file.write_text(text, encoding="utf-8")
    found, _ = read(file, "conllu")
    theirs = [
        [(t["form"], t["upos"]) for t in sentence if isinstance(t["id"], int)]
        for sentence in conllu.parse(text)
    ]
    assert [list(zip(s.words, s.tags, strict=True)) for s in found] == theirs
    assert found[0].where == f"{file}:1"


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("panx", "de:Anton\tB-PER\nde::\tO\n\nde:Bonn\tB-LOC\n"),
        ("conll2003", "-DOCSTART- -X- -X- O\n\nAnton NNP B-NP B-PER\n: : O O\n\nBonn N B B-LOC\n"),
        ("two-column", "Anton B-PER\n: O\n\n\nBonn\tB-LOC"),
        ("indexed", "0\tAnton\tB-PER\n1\t:\tO\n\n0\tBonn\tB-LOC\n"),
    ],
)
def test_formats(format, text, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(text, encoding="utf-8")
    found, _ = read(file, format)
    assert [s.words for s in found] == [("Anton", ":"), ("Bonn",)]
    assert [s.tags for s in found] == [("B-PER", "O"), ("B-LOC",)]


def test_a_number_with_spaces_is_one_word_of_two_columns(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("13 500 NUM\n", encoding="utf-8")
    assert read(file, "two-column")[0][0].words == ("13 500",)


@pytest.mark.parametrize(
    ("format", "line", "said"),
    [
        ("conllu", "1\tword\tNOUN", "3 columns between tabs; CoNLL-U has 10"),
        ("conllu", "1x\tw\t_\tNOUN" + "\t_" * 6, "ID '1x'"),
        ("conllu", "1\t\t_\tNOUN" + "\t_" * 6, "the word is empty"),
        ("panx", "word\tO", "must be lang:word"),
        ("conll2003", "word NN O", "3 columns; CoNLL-2003 has 4"),
        ("two-column", "word", "must be a word and a tag"),
        ("indexed", "a\tword\tO", "must be a number, a word and a tag"),
        ("two-column", "wo\x00rd O", "control character"),
    ],
)
def test_a_bad_line_is_located_or_its_sentence_left_out(format, line, said, tmp_path):
    good = {
        "conllu": "1\tw\t_\tX" + "\t_" * 6, "panx": "de:w\tO", "conll2003": "w N O O",
        "two-column": "w O", "indexed": "0\tw\tO",
    }[format]  # fmt: skip
    file = tmp_path / "a.txt"
    file.write_text(f"{good}\n\n{good}\n{line}\n\n{good}\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=said) as error:
        read(file, format)
    assert str(error.value).startswith(f"{file}:4: ")
    found, account = read(file, format, "drop")
    assert [s.where for s in found] == [f"{file}:1", f"{file}:6"]
    assert account.dropped() == 1


def test_no_such_format_and_no_sentence(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("# only a comment\n")
    with pytest.raises(RecipeError, match="did you mean 'conllu'"):
        read(file, "conllx")
    with pytest.raises(CorpusError, match="no tagged sentence"):
        read(file, "conllu")


@pytest.mark.filterwarnings("ignore")  # what datasets and pyarrow deprecate of themselves
def test_hugging_face_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-PER", "I-PER"]
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=names)),
        }
    )
    rows = {"tokens": [["Anton", "X"], ["da"]], "ner_tags": [[1, 2], [0]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "set"))
    found, account = read(tmp_path / "set", "datasets")
    assert [(s.words, s.tags) for s in found] == [
        (("Anton", "X"), ("B-PER", "I-PER")),
        (("da",), ("O",)),
    ]
    assert account.kept() == 2
    with pytest.raises(CorpusError, match="no split 'dev'; there: train"):
        read_tagged(str(tmp_path / "set"), "datasets", Account("fail"), "dev")
