import json

import pytest
import sacrebleu

from gradvac.translation.scoring import Average, family_of, score, score_directions, side
from gradvac.translation.significance import paired_test
from gradvac.translation.tokenizers import tokenizer

HYPOTHESES = [
    "The cat sat on the mat.",
    "He opened a file in the editor .",
    "There is nothing here to be seen, is there?",
]
REFERENCES = [
    "The cat is sitting on the mat.",
    "He opened the file in an editor.",
    "There is nothing to see here.",
]
CHINESE = ["打开文件编辑器", "没有什么可看的"]
CHINESE_REFERENCES = ["在编辑器中打开文件", "这里没有什么可看的"]


def test_scores_are_those_of_sacrebleu() -> None:
    found = score(HYPOTHESES, REFERENCES)
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], force=True)
    assert found.bleu == expected.score
    assert found.chrf == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score
    assert found.sentences == 3
    assert found.bleu_signature == (
        f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )
    assert found.chrf_signature == (
        f"nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:{sacrebleu.__version__}"
    )


def test_how_characters_are_written_does_not_matter() -> None:
    """Devanagari QA is one character or two, which Unicode calls the same text; a half is not."""
    composed, decomposed = "\u0958\u0932\u092e caf\u00e9 ½", "\u0915\u093c\u0932\u092e cafe\u0301 ½"
    found = score([decomposed], [composed], "char")
    assert (found.bleu, found.chrf) == (pytest.approx(100), 100)
    assert score(["1/2"], ["½"], "char").chrf < 100
    assert paired_test([composed] * 3, [decomposed] * 3, [composed] * 3) == {"bleu": 1, "chrf": 1}


def test_a_perfect_translation_scores_100() -> None:
    found = score(REFERENCES, REFERENCES)
    assert (found.bleu, found.chrf) == (pytest.approx(100), pytest.approx(100))


@pytest.mark.parametrize(
    ("language", "expected"),
    [("de", "13a"), ("zh_TW", "zh"), ("zh", "zh"), ("ja", "char"), ("th", "char"), ("hi", "13a")],
)
def test_tokenizer_by_language(language: str, expected: str) -> None:
    assert tokenizer(language) == expected


def test_directions_use_the_tokenizer_of_their_target() -> None:
    found = score_directions(
        {"en-zh_CN": CHINESE, "zh_CN-en": HYPOTHESES},
        {"en-zh_CN": CHINESE_REFERENCES, "zh_CN-en": REFERENCES},
    )
    expected = sacrebleu.corpus_bleu(CHINESE, [CHINESE_REFERENCES], tokenize="zh")
    assert found.directions["en-zh_CN"].bleu == expected.score
    assert "tok:zh" in found.directions["en-zh_CN"].bleu_signature
    assert "tok:13a" in found.directions["zh_CN-en"].bleu_signature
    fixed = score_directions({"en-zh": CHINESE}, {"en-zh": CHINESE_REFERENCES}, tokenize="char")
    assert "tok:char" in fixed.directions["en-zh"].bleu_signature


@pytest.mark.parametrize(
    ("direction", "where", "relatives"),
    [
        ("fr-en", "any-en", "Western European"),
        ("en-cs", "en-any", "West Slavic"),
        ("en_GB-tr", "en-any", "Turkic"),
        ("fr-hi", "other", "Indo-Iranian"),
    ],
)
def test_side_and_family(direction: str, where: str, relatives: str) -> None:
    assert side(direction) == where
    assert family_of(direction) == relatives


def test_averages_are_plain_means_of_directions() -> None:
    hypotheses = {
        "en-fr": HYPOTHESES,
        "en-cs": REFERENCES,
        "fr-en": HYPOTHESES[:2],
        "cs-fr": REFERENCES[:1],
    }
    references = {
        "en-fr": REFERENCES,
        "en-cs": REFERENCES,
        "fr-en": REFERENCES[:2],
        "cs-fr": REFERENCES[:1],
    }
    found = score_directions(hypotheses, references, {"en-fr": "high", "en-cs": "low"})
    fr = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], force=True).score
    fr_en = sacrebleu.corpus_bleu(HYPOTHESES[:2], [REFERENCES[:2]], force=True).score
    bleu = {(a.side, a.kind, a.subset): (a.directions, a.bleu) for a in found.averages()}

    def about(count: int, value: float) -> tuple[int, object]:
        return count, pytest.approx(value)

    assert bleu == {
        ("all", "all", "all"): about(4, (fr + 100 + fr_en + 100) / 4),
        ("all", "level", "high"): about(1, fr),
        ("all", "level", "low"): about(1, 100),
        ("all", "family", "Western European"): about(3, (fr + fr_en + 100) / 3),
        ("all", "family", "West Slavic"): about(1, 100),
        ("en-any", "all", "all"): about(2, (fr + 100) / 2),
        ("en-any", "level", "high"): about(1, fr),
        ("en-any", "level", "low"): about(1, 100),
        ("en-any", "family", "Western European"): about(1, fr),
        ("en-any", "family", "West Slavic"): about(1, 100),
        ("any-en", "all", "all"): about(1, fr_en),
        ("any-en", "family", "Western European"): about(1, fr_en),
        ("other", "all", "all"): about(1, 100),
        ("other", "family", "Western European"): about(1, 100),
    }
    assert found.averages()[0] == Average(
        "all",
        "all",
        "all",
        4,
        pytest.approx((fr + 100 + fr_en + 100) / 4),
        found.averages()[0].chrf,
    )
    names = [(row["name"], row["kind"], row["level"]) for row in found.rows()]
    assert names == [
        ("en-fr", "direction", "high"),
        ("en-cs", "direction", "low"),
        ("fr-en", "direction", ""),
        ("cs-fr", "direction", ""),
        ("all", "side", "all"),
        ("all", "level", "high"),
        ("all", "level", "low"),
        ("en-any", "side", "all"),
        ("en-any", "level", "high"),
        ("en-any", "level", "low"),
        ("any-en", "side", "all"),
        ("other", "side", "all"),
    ]
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_signatures_name_the_exceptions() -> None:
    found = score_directions(
        {"de-en": HYPOTHESES, "fr-en": HYPOTHESES, "en-zh": CHINESE},
        {"de-en": REFERENCES, "fr-en": REFERENCES, "en-zh": CHINESE_REFERENCES},
    )
    assert list(found.signatures) == ["BLEU", "BLEU en-zh", "chrF++"]
    assert "tok:zh" in found.signatures["BLEU en-zh"]


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="fr-en: 1 hypotheses and 3 references"):
        score_directions({"fr-en": HYPOTHESES[:1]}, {"fr-en": REFERENCES})
    with pytest.raises(ValueError, match="missing for de-en"):
        score_directions({"fr-en": HYPOTHESES}, {"fr-en": REFERENCES, "de-en": REFERENCES})
    with pytest.raises(ValueError, match="0 hypotheses"):
        score([], [])
