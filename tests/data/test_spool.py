"""Training text as a stream: the pairs and the account are those of cleaning it in memory."""

import random

import numpy as np
import pytest

from gradvac.data import repeats as repeats_module
from gradvac.data.repeats import Repeats
from gradvac.data.spool import Spool
from gradvac.text.cleaning import Account, CleaningRules, clean, text_key
from gradvac.text.languages import Direction, directions
from gradvac.text.readers import Row
from gradvac.translation.vocabulary import TextSample

WORDS = "open close file page table image sheet the a of not".split()


def rows(count: int, seed: int = 0) -> list[Row]:
    """Multi-way rows with gaps, empty sides, copies and many repetitions."""
    rng = random.Random(seed)
    out = []
    for n in range(count):
        english = " ".join(rng.choices(WORDS, k=rng.randint(1, 3)))
        texts = {"en": english}
        for code in ("fr", "ne", "sw"):
            if rng.random() < 0.6 and not (code == "sw" and n < count // 3):
                texts[code] = english if rng.random() < 0.1 else f"{english[::-1]} {code}"
        out.append(Row(texts, f"f.tsv:{n + 1}"))
    return out


@pytest.mark.parametrize("languages", [None, ("fr", "ne", "sw")])
def test_it_leaves_what_cleaning_in_memory_leaves(tmp_path, languages):
    text, rules = rows(400), CleaningRules()
    held_out = frozenset(text_key(row.texts["en"]) for row in text[:9])
    account, expected = Account(), Account()
    spool = Spool(tmp_path, rules, account, "both", languages, held_out)
    spool.fill(iter(text))
    wanted = directions("both", ["fr", "ne", "sw"])
    for direction in wanted:
        source, target = direction.source, direction.target
        name = f"train {direction.name}"
        pairs = clean(text, source, target, rules, expected, exclude=held_out, corpus=name)
        pairs = [(pair.source, pair.target) for pair in pairs]
        chunks = list(spool.texts(direction, 7, 10**6))
        found = [pair for s, t in chunks for pair in zip(s, t, strict=True)]
        assert found == pairs and spool.pairs(direction) == len(pairs) > 20
        few = [pair for s, t in spool.texts(direction, 7, 9) for pair in zip(s, t, strict=True)]
        assert few == pairs[:9]
    assert account.to_dict() == expected.to_dict() | {
        "corpora": {
            name: expected.to_dict()["corpora"][name] for name in account.to_dict()["corpora"]
        }
    }
    assert len(account.to_dict()["corpora"]) == 6


@pytest.mark.parametrize("buffer", [2**20, 50])
def test_repeats_are_all_but_the_first_of_a_key_in_its_group(tmp_path, monkeypatch, buffer):
    monkeypatch.setattr(repeats_module, "_BUFFER", buffer)  # 50: through buckets on disk
    rng = random.Random(1)
    keys = [[rng.randrange(80) for _ in range(n)] for n in (300, 0, 120)]
    repeats = Repeats(tmp_path)
    for place in range(300):
        for group, own in enumerate(keys):
            if place < len(own):
                repeats.add([b"%d" % own[place]], group, place)
    flags = repeats.flags([len(own) for own in keys])
    for own, found in zip(keys, flags, strict=True):
        assert found.tolist() == [key in own[:place] for place, key in enumerate(own)]


def test_a_region_of_english_beside_english_is_a_language_like_others(tmp_path):
    met = [{"en": "a", "en_US": "b"}, {"en": "c", "fr": "d", "en_US": "e"}, {"fr": "f", "en": "g"}]
    spool = Spool(tmp_path, CleaningRules(), Account(), "to_en", None, frozenset())
    spool.fill(Row(texts, f"f:{n}") for n, texts in enumerate(met))
    assert spool.names == ["en_US-en", "fr-en"]
    assert [d.name for d in directions("to_en", ["eng_Latn", "fr"])] == ["fr-eng_Latn"]
    assert [d.name for d in directions("to_en", ["eng_Latn", "fr", "en"])] == [
        "eng_Latn-en",
        "fr-en",
    ]


def test_directions_are_those_of_the_recipe():
    assert [d.name for d in directions("both", ["ne", "en", "fr"])] == [
        "fr-en", "ne-en", "en-fr", "en-ne",
    ]  # fmt: skip
    assert directions(["de-fr"], []) == [Direction("de", "fr")]


def test_a_sample_of_texts_is_bounded_and_knows_how_many_there_were():
    sample = TextSample(500)
    for n in range(3):
        for i in range(20_000):
            sample.add(f"text {i if n else 19_999 - i}")
    assert 500 <= len(sample.texts) <= 1000 and len(set(sample.texts)) == len(sample.texts)
    # relative standard deviation 500 ** -0.5 at most: five of them
    assert sample.size == pytest.approx(20_000, rel=5 * 500**-0.5)
    numbers = [int(text.split()[1]) for text in sample.texts]
    assert np.mean(numbers) == pytest.approx(10_000, abs=5 * 20_000 * (12 * 500) ** -0.5)


def test_a_sample_of_few_texts_is_all_of_them_in_their_order():
    sample = TextSample(3)
    for text in ["b", "a", "b", "c", "e", "a"]:
        sample.add(text)
    assert sample.texts == ["b", "a", "c", "e"] and sample.size == 4
