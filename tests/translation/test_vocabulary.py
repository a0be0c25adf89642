"""The shared vocabulary: tags nobody can spell, byte fallback, temperature-sampled training."""

import itertools
import os
import signal
import threading
import unicodedata
from collections import Counter

import langcodes
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from langcodes.data_dicts import LIKELY_SUBTAGS

from gradvac.data.encoded import BOS, EOS, PAD, UNK
from gradvac.errors import RecipeError, RunError
from gradvac.experiment.recipe.paths import resolve
from gradvac.text.blocks import normalise
from gradvac.translation.piece_model import rule_name, with_rule_name
from gradvac.translation.vocabulary import Vocabulary, temperature_sample, train_vocabulary

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


def scripts() -> list[str]:
    """Of all languages that langcodes knows, by ISO 15924."""
    tags = {tag.split("-")[0] for tag in LIKELY_SUBTAGS} - {"und"}
    found = {str(langcodes.Language.get(tag).maximize().script) for tag in tags}
    parts = {"Hans": "Hani", "Hant": "Hani", "Aran": "Arab"}  # of which Unicode knows the whole
    whole = {"Jpan": ["Hira", "Kana", "Hani"], "Kore": ["Hang", "Hani"]}
    return sorted({s for f in found for s in whole.get(f, [parts.get(f, f)])} - {"None"})


CHARACTERS = "".join(c for c in map(chr, range(0x110000)) if unicodedata.category(c)[0] != "C")


def text_of(script: str) -> str:
    """A text with all characters of a script, by Unicode."""
    found = regex.findall(rf"\p{{Script={script}}}", CHARACTERS)
    marks = [c for c in found if unicodedata.category(c)[0] == "M"]
    letters = [c for c in found if unicodedata.category(c)[0] != "M"] or ["o"]
    cycle = itertools.cycle(marks or [""])
    words = [letter + next(cycle) for letter in letters] + [letters[0] + mark for mark in marks]
    return normalise(" ".join(words))


def test_all_scripts_come_out_as_they_went_in():
    texts = {script: text_of(script) for script in scripts()}
    assert len(texts) >= 100 and all(texts.values())
    some = {s.lower(): [w] for s, text in texts.items() for w in text.split()[:10]}
    some["en"] = TEXTS["en"]
    trained = train_vocabulary(some, size=550, character_coverage=1.0, temperature=100)
    for script, text in texts.items():
        (ids,) = trained.encode_targets([text])
        assert UNK not in ids and trained.decode(ids) == text, script


# Five Chinese and Thai sentences' worth of what NMT-NFKC changes, and what else is like it.
REWRITTEN = [
    "你好，世界！（一）",
    "น้ำ ทำ จำ",
    "…",
    "m²",
    "½",
    "№",
    "\ufe30",
    "ﬁ",
    "ＡＢ１",
    "™",
    "㎏",
]


@pytest.mark.parametrize("normalization", ["nfc", "identity"])
def test_what_goes_in_comes_out(normalization):
    exact = train_vocabulary(TEXTS, size=SIZE, symbols=["{}"], normalization=normalization)
    assert exact.normalization == normalization
    for text in [*REWRITTEN, "\u2581 a\u2581b", "<0x41> <unk>", "a\u200db\ufeffc"]:
        assert exact.decode(exact.encode_targets([text])[0]) == text
    decomposed = "cafe\u0301  \u212b \u00a0x"
    expected = {"identity": decomposed, "nfc": "caf\u00e9 \u00c5 x"}[normalization]
    assert exact.decode(exact.encode_source(decomposed, "en")) == expected


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufdd0")))
def test_any_text_in_normal_form_comes_out(vocabulary, text):
    text = normalise(text)
    assert vocabulary.decode(vocabulary.encode_targets([text])[0]) == text


def test_sentencepieces_own_rule_is_still_there():
    own = train_vocabulary(TEXTS, size=SIZE, symbols=["{}"], normalization="nmt_nfkc")
    assert own.normalization == "nmt_nfkc"
    assert own.decode(own.encode_targets(["½ … №"])[0]) == "1\u20442 ... No"
    shipped = Vocabulary.load(resolve("shipped:start") / "vocabulary.model")
    assert shipped.normalization == "nmt_nfkc"
    with pytest.raises(RecipeError, match="found 'nfkd', must be nfc, identity, nmt_nfkc"):
        train_vocabulary(TEXTS, size=SIZE, normalization="nfkd")  # type: ignore[arg-type]


def test_the_name_of_a_rule_is_all_that_changes(vocabulary):
    plain = with_rule_name(vocabulary.model, "identity")
    assert (rule_name(plain), rule_name(vocabulary.model)) == ("identity", "nfc")
    assert with_rule_name(plain, "nfc") == vocabulary.model and rule_name(b"") == ""
    long = Vocabulary(with_rule_name(plain, "x" * 300))  # a length of two bytes
    assert long.normalization == "x" * 300 and len(long) == len(vocabulary)
    assert Vocabulary(plain).encode_targets(TEXTS["fr"]) == vocabulary.encode_targets(TEXTS["fr"])


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


@pytest.mark.parametrize("asked", [1, len(WORDS)])
def test_ctrl_c_ends_the_wait_for_sentencepiece(monkeypatch, asked):
    """Which is busy with the text, or with itself, and never looks for a signal."""
    released, seen = threading.Event(), []

    def train(sentence_iterator, **options):
        seen.extend(itertools.islice(sentence_iterator, asked))
        os.kill(os.getpid(), signal.SIGINT)
        if asked == 1:
            seen.extend(sentence_iterator)  # ends when the wait has ended
        else:
            released.wait()

    def endless():
        yield from WORDS
        if asked == 1:
            yield from itertools.repeat("more")

    monkeypatch.setattr("gradvac.translation.vocabulary.spm.SentencePieceTrainer.train", train)
    monkeypatch.setattr(
        "gradvac.translation.vocabulary.temperature_sample", lambda *given: endless()
    )
    with pytest.raises(KeyboardInterrupt):
        train_vocabulary({"en": WORDS}, size=SIZE)
    assert len(seen) >= asked and not released.is_set()
    released.set()


def test_ctrl_c_while_the_thread_begins_ends_it_too(monkeypatch):
    """It went on for ever, with text without end: 30 MB a second in all later tests."""

    class Interrupted(threading.Thread):
        def start(self):
            super().start()
            raise KeyboardInterrupt

    monkeypatch.setattr("gradvac.translation.vocabulary.Thread", Interrupted)
    monkeypatch.setattr(
        "gradvac.translation.vocabulary.spm.SentencePieceTrainer.train",
        lambda sentence_iterator, **options: list(sentence_iterator),
    )
    monkeypatch.setattr(
        "gradvac.translation.vocabulary.temperature_sample",
        lambda *given: itertools.repeat("more"),
    )
    with pytest.raises(KeyboardInterrupt):
        train_vocabulary({"en": WORDS}, size=SIZE)
    assert not any(isinstance(thread, Interrupted) for thread in threading.enumerate())
