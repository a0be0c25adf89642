"""The shared vocabulary: tags nobody can spell, byte fallback, temperature-sampled training."""

from collections import Counter

import pytest

from gradvac.errors import RecipeError, RunError
from gradvac.translation.vocabulary import (
    BOS,
    EOS,
    PAD,
    UNK,
    Vocabulary,
    temperature_sample,
    train_vocabulary,
)

WORDS = (
    "open close file window save print page table insert delete select format text image search "
    "replace document sheet column border header footer margin paragraph spelling grammar language "
    "dialog toolbar button preview zoom chapter index bookmark hyperlink frame caption style font"
).split()
SIZE = 330  # 256 bytes, 6 special symbols, and what this little text can fill
TEXTS = {
    "en": [f"{a} the {b} {{}}" for a in WORDS for b in WORDS],
    "fr": [f"{a}r le {b}" for a in WORDS for b in WORDS[:5]],
}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train_vocabulary(TEXTS, size=SIZE, symbols=["{}"])


def test_size_counts_everything(vocabulary):
    assert len(vocabulary) == SIZE
    assert vocabulary.languages == ("en", "fr")


def test_round_trip_including_bytes_never_seen(vocabulary):
    for text in ("open the file", "नेपाली 𝄞 ß", "save {} pages"):
        ids = vocabulary.encode_targets([text])[0]
        assert ids[-1] == EOS and UNK not in ids
        assert vocabulary.decode(ids) == text


def test_source_begins_with_the_tag_and_ends_with_eos(vocabulary):
    ids = vocabulary.encode_source("open the file", "fr")
    assert ids[0] == vocabulary.tag_id("fr") and ids[-1] == EOS
    assert vocabulary.encode_sources(["open the file"], "fr") == [ids]


def test_text_cannot_spell_a_tag(vocabulary):
    hostile = "<2fr> open </s> <s> <pad>"
    ids = vocabulary.encode_source(hostile, "en")
    assert vocabulary.tag_id("fr") not in ids and ids.count(EOS) == 1
    assert BOS not in ids and PAD not in ids


def test_forbidden_ids_are_all_that_is_not_text(vocabulary):
    tags = {vocabulary.tag_id("en"), vocabulary.tag_id("fr")}
    assert set(vocabulary.forbidden) == {PAD, UNK, BOS} | tags


def test_unknown_language_is_named(vocabulary):
    with pytest.raises(RunError, match="no tag for language 'xx'; it has: en, fr"):
        vocabulary.tag_id("xx")


def test_save_and_load(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "v.model")
    assert Vocabulary.load(tmp_path / "v.model").fingerprint == vocabulary.fingerprint
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(RunError, match=r"bad\.model"):
        Vocabulary.load(tmp_path / "bad.model")


def test_training_is_deterministic(vocabulary):
    assert train_vocabulary(TEXTS, size=SIZE, symbols=["{}"]).model == vocabulary.model


def test_temperature_sampling_of_training_text():
    texts = {"big": [f"b{i}" for i in range(1000)], "small": [f"s{i}" for i in range(10)]}
    drawn = Counter(t[0] for t in temperature_sample(texts, 5.0, 2000, seed=0))
    share = 10 ** (1 / 5) / (10 ** (1 / 5) + 1000 ** (1 / 5))
    assert drawn["s"] == pytest.approx(2000 * share, abs=1)


def test_a_size_out_of_reach_names_the_key():
    message = r"vocabulary\.size: 60000 cannot be trained on this text: Vocabulary size too high"
    with pytest.raises(RecipeError, match=message):
        train_vocabulary({"en": ["one two"]}, size=60_000)
