import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from gradvac.errors import RunError
from gradvac.translation.search import Hypothesis, beam_search
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer
from gradvac.translation.translate import Translator
from gradvac.translation.vocabulary import Vocabulary, train_vocabulary

SENTENCES = ["the cat sat on the mat", "a dog", "", "my cat saw a dog on a mat", "  ", "dogs"]
TARGETS = ["fr", "de", "fr", "de", "de", "fr"]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    text = ["the cat sat on the mat", "a dog saw my cat", "dogs saw mats and cats"]
    return train_vocabulary({"fr": text, "de": text}, size=27, byte_fallback=False)


@pytest.fixture
def translator(vocabulary: Vocabulary) -> Translator:
    torch.manual_seed(0)
    config = TransformerConfig(len(vocabulary), 16, 32, 2, 1, 1)
    return Translator(Transformer(config).double(), vocabulary, beam=2)


def test_order_and_batching_do_not_matter(translator: Translator) -> None:
    together = translator.translate(SENTENCES, TARGETS)
    for tokens in (1, 20):
        translator.batch_tokens = tokens
        assert translator.translate(SENTENCES, TARGETS) == together
    assert translator.translate(SENTENCES[::-1], TARGETS[::-1]) == together[::-1]
    assert together[2] == together[4] == ""
    assert all(together[i] for i in (0, 1, 3, 5))


def test_each_sentence_goes_with_its_tag_in_batches_that_fit(
    translator: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, str] = {}
    vocabulary = translator.vocabulary
    translator.batch_tokens = 60

    def echo(model: Transformer, source: Tensor, **options: Any) -> list[list[Hypothesis]]:
        assert source.numel() <= 60
        for row in source.tolist():
            asked[vocabulary.decode(row[1:])] = vocabulary.pieces.id_to_piece(row[0])
        return [[Hypothesis(0.0, 0.0, tuple(row[1:]))] for row in source.tolist()]

    monkeypatch.setattr("gradvac.translation.translate.beam_search", echo)
    assert translator.translate(SENTENCES, TARGETS) == [s.strip() for s in SENTENCES]
    expected = zip(SENTENCES, TARGETS, strict=True)
    assert asked == {s: f"<2{target}>" for s, target in expected if s.strip()}


def test_what_is_overlong_is_cut_with_a_warning(
    translator: Translator, caplog: pytest.LogCaptureFixture
) -> None:
    translator.max_source = 6
    with caplog.at_level(logging.WARNING):
        cut = translator.translate(["dog", SENTENCES[0] * 20], ["de", "fr"])
    (record,) = caplog.records
    assert record.getMessage().startswith("sentence 2 has ")
    assert record.getMessage().endswith("cut to max_source = 6")
    ids = translator.vocabulary.encode_source(SENTENCES[0], "fr")[:5]
    model, forbidden = translator.model, translator.vocabulary.forbidden
    source = torch.tensor([[*ids, 3]])
    expected = beam_search(model, source, bos=2, eos=3, forbidden=forbidden, beam=2)[0][0]
    assert cut[1] == translator.vocabulary.decode(expected.tokens)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [(["fr"], ValueError, "shorter"), (["fr", "xx"], RunError, "no tag for language 'xx'")],
)
def test_languages_that_do_not_fit_are_refused(
    translator: Translator, targets: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        translator.translate(["a", "b"], targets)


@pytest.mark.parametrize(
    "text", ["\u200b", "\u200b \u2060\u00ad", "\ufeff", "\u3164", "\u2800", "\t\xa0"]
)
def test_what_nobody_sees_stays_empty(translator: Translator, text: str) -> None:
    assert translator.translate([text, "a dog"], ["fr", "fr"])[0] == ""


def test_nothing_gives_nothing(translator: Translator) -> None:
    empty: list[Any] = []
    assert translator.translate(empty, empty) == []
