"""Readers of tagged text against other readers, and what they say of bad lines."""

import random

import pytest

from gradvac.errors import CorpusError, RecipeError
from gradvac.tagging.readers import Tagged, check_overlap, read_tagged
from gradvac.text.account import Account

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
        end = 0
        while word <= length:
            if rng.random() < 0.3 and end < word < length:
                end = word + 1
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
        ("conllu", "2\t\t_\tNOUN" + "\t_" * 6, "the word is empty"),
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


def words_of(*ids: str) -> str:
    return "".join(f"{i}\tw{i}\t_\t{'_' if '-' in i else 'X'}" + "\t_" * 6 + "\n" for i in ids)


@pytest.mark.parametrize(
    ("ids", "line", "said"),
    [
        ("1-2", 3, "a multiword token up to 2, its words up to 0"),
        ("1 2-3 2", 5, "a multiword token up to 3, its words up to 2"),
        ("1 3", 4, "ID '3'; must be 2 here"),
        ("2", 3, "ID '2'; must be 1 here"),
        ("1 2 2", 5, "ID '2'; must be 3 here"),
        ("1 2 1 2", 5, "ID '1'; must be 3 here; an empty line is missing before a new sentence"),
        ("1 2 1-2 1 2", 5, "ID '1-2' after 2; .* an empty line is missing"),
        ("1 2-2 2", 4, "ID '2-2' after 1"),
        ("1-3 2 3", 4, "ID '2'; must be 1"),
        ("1-2 1 2-3 2 3", 5, "ID '2-3' after 1"),
        ("1 1.2", 4, "ID '1.2'; must be 1.1 here"),
        ("1 2.1 2", 4, "ID '2.1'; must be 1.1 here"),
        ("1 ٢", 4, "ID '٢'; must be such as 1"),
    ],
)
def test_ids_of_conllu_that_do_not_follow_each_other(ids, line, said, tmp_path):
    """By the format's page: words 1, 2, ...; ranges before their words, none in another."""
    file = tmp_path / "a.conllu"
    file.write_text(words_of("1") + "\n" + words_of(*ids.split()) + "\n" + words_of("1", "1.1"))
    with pytest.raises(CorpusError, match=said) as error:
        read(file, "conllu")
    assert str(error.value).startswith(f"{file}:{line}: ")
    found, account = read(file, "conllu", "drop")
    assert [len(s.words) for s in found] == [1, 1] and account.dropped() == 1


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("conllu", words_of("1", "2") + "# sent_id = 2\n" + words_of("1")),
        ("indexed", "0\ta\tX\n1\tb\tX\n0\tc\tX\n"),
        ("conll2003", "a N B O\n-DOCSTART- -X- -X- O\n"),
    ],
)
def test_two_sentences_without_an_empty_line_between_them(format, text, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(text)
    with pytest.raises(CorpusError, match="an empty line is missing before a new sentence"):
        read(file, format)


@pytest.mark.parametrize("blank", ["\xa0", "\u3000", "\u200b", " \t"])
@pytest.mark.parametrize("format", ["conll2003", "two-column", "panx", "indexed", "conllu"])
def test_a_line_of_other_white_space_ends_a_sentence_and_is_noted(format, blank, tmp_path):
    line = {
        "conllu": words_of("1"), "panx": "de:w\tO\n", "conll2003": "w N O O\n",
        "two-column": "w O\n", "indexed": "0\tw\tO\n",
    }[format]  # fmt: skip
    file = tmp_path / "a.txt"
    file.write_text(line + blank + "\n" + line, encoding="utf-8")
    found, account = read(file, format)
    assert len(found) == 2
    assert account.noted("a line of odd white space ends a sentence") == (blank != " \t")


def test_other_spaces_are_parts_of_words(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("13\xa0500 CD B-NP O\n", encoding="utf-8")
    assert read(file, "conll2003")[0][0].words == ("13\xa0500",)
    file.write_text("13\xa0500 NUM\n13\xa0500\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.txt:2: .*must be a word and a tag"):
        read(file, "two-column")


def tagged(file, *lengths):
    return [Tagged(("w",) * n, ("X",) * n, f"{file}:{n}") for n in lengths]


def test_held_out_text_that_was_trained_on_is_noted():
    parts = {"train": tagged("train", 1, 2, 3), "valid": [], "test": tagged("test", 2, 3, 4)}
    account = Account()
    check_overlap("de", parts, account)
    assert account.noted("test of de, in training too", "test") == 2
    assert "note: test: test of de, in training too: 2 rows, the first at test:2" in str(account)


@pytest.mark.parametrize(
    ("test", "count"),
    [(tagged("train", 2), 1), (tagged("copy", 3, 2, 1), 3), (tagged("train", 3, 9), 1)],
)
def test_a_test_set_that_is_the_training_text_is_refused(test, count):
    parts = {"train": tagged("train", 1, 2, 3), "valid": [], "test": test}
    told = rf"{test[0].where}: de: test is training text: {count} of its .* this one at train:"
    with pytest.raises(CorpusError, match=told):
        check_overlap("de", parts, Account())


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
