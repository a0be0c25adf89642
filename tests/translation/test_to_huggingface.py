import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from gradvac.errors import RunError
from gradvac.experiment.run.checkpoint import load_tensors
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.to_huggingface import write_huggingface
from gradvac.translation.transformer import Transformer
from gradvac.translation.vocabulary import train_vocabulary
from tests.translation.exported import (
    KINDS,
    ours,
    padded,
    shipped,
    shipped_sources,
    toy,
    toy_vocabulary,
)

HARD = [
    "Wählen Sie die  Zellen aus",
    "  leading, trailing ",
    "123 456,78 %",
    "emoji 😀👩‍👩‍👧 and é (two code points), ṩ",
    "no\u00a0break, zero\u200bwidth, ｆｕｌｌ, ﬁ",
    "<2en> >>fr<< <0x41>",
    "<pad> a <s> b </s> <unk>",
    "हिन्दी пример",
    "\t",
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, as Hugging Face's."""
    folder = tmp_path_factory.mktemp("huggingface")
    found = shipped()
    write_huggingface(found.config, load_tensors(found.parameters), found.vocabulary, folder)
    return folder


def tokenizer(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")  # it is not used
        return AutoTokenizer.from_pretrained(folder)


def theirs(folder: Path) -> Any:
    model, found = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found  # no parameter missing, unknown or misshapen
    return model.eval()


def farthest(own: Transformer, other: Any, source: torch.Tensor, target: torch.Tensor) -> float:
    """Largest difference of a logit anywhere but at padding."""
    with torch.no_grad():
        expected = own.logits(own(source, target))
        found = other(input_ids=source, attention_mask=source != 0, decoder_input_ids=target).logits
    return (expected - found).abs().max().item()


@pytest.mark.parametrize(("norm", "activation"), KINDS)
def test_logits_are_ours_for_every_kind(norm: str, activation: str, tmp_path: Path) -> None:
    model = toy(norm, activation)
    write_huggingface(model.config, model.state_dict(), toy_vocabulary(), tmp_path)
    other = theirs(tmp_path)
    source = padded([[5, 40, 50, 60, 3], [4, 70, 3]])
    target = torch.tensor([[2, 80, 90, 100], [2, 110, 120, 130]])
    assert farthest(model, other, source, target) < 1e-5
    assert farthest(model.double(), other.double(), source, target) < 1e-10
    assert other.config.dropout == 0.3


def test_the_shipped_model_has_our_logits_and_greedy_translations(exported: Path) -> None:
    found, other = shipped(), theirs(exported)
    model, sources = found.load(), shipped_sources(4)
    source = padded(sources)
    best = ours(model, found.vocabulary, sources)
    target = padded([[2, *tokens] for tokens in best])
    assert farthest(model, other, source, target) < 1e-5
    generated = other.generate(input_ids=source, attention_mask=source != 0)
    assert [[t for t in row if t > 3] for row in generated.tolist()] == best
    assert farthest(model.double(), other.double(), source, target) < 1e-10


def test_the_tokenizer_gives_our_ids_and_our_text(exported: Path) -> None:
    hf, vocabulary = tokenizer(exported), shipped().vocabulary
    draw = random.Random(0)
    letters = "aäßπиहि。字😀é 0,\u0301\u200d"
    texts = [*HARD, *("".join(draw.choices(letters, k=12)) for _ in range(200))]
    for language in ("en", "fi"):
        ids = hf([f">>{language}<< {text}" for text in texts])["input_ids"]
        assert ids == [vocabulary.encode_source(text, language) for text in texts]
    for row in vocabulary.encode_targets(texts):
        assert hf.decode([2, *row], skip_special_tokens=True) == vocabulary.decode(row).strip()


def test_what_a_translation_never_contains_is_not_generated(tmp_path: Path) -> None:
    model, vocabulary = toy("pre", "relu"), toy_vocabulary()
    with torch.no_grad():  # every position wants the tag, then eos
        wish = 5 * torch.ones(16)
        model.decoder.norm.weight.zero_()
        model.decoder.norm.bias.copy_(wish)
        model.embedding.weight[4], model.embedding.weight[vocabulary.eos] = wish, 0.9 * wish
    source = padded([[5, 40, 50, 3], [4, 70, 3]])
    logits = model.logits(model(source, torch.tensor([[2], [2]])))[:, 0]
    assert logits.topk(2).indices.tolist() == [[4, vocabulary.eos]] * 2
    write_huggingface(model.config, model.state_dict(), vocabulary, tmp_path)
    generated = theirs(tmp_path).generate(
        input_ids=source, attention_mask=source != 0, max_new_tokens=6
    )
    assert [len(row) for row in generated] == [3, 3]  # start, a token, eos
    assert not set(generated[:, 1].tolist()) & {*vocabulary.forbidden, vocabulary.eos}
    assert set(generated[:, 2].tolist()) == {vocabulary.eos}


def test_what_has_no_counterpart_is_refused(tmp_path: Path) -> None:
    config = TransformerConfig(283, 16, 24, 2, 1, 1, clsr_tags=(4, 5))
    with pytest.raises(RunError, match=r"clsr: .*no counterpart in Hugging Face transformers"):
        write_huggingface(config, {}, toy_vocabulary(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_piece_spelt_like_a_tag_is_refused(tmp_path: Path) -> None:
    text = ["the cat sat on the mat", "a dog saw my cat"]
    clash = train_vocabulary({"fr": text}, size=280, symbols=[">>fr<<"])
    config = TransformerConfig(len(clash), 16, 24, 2, 1, 1)
    with pytest.raises(RunError, match="spelt >>xx<<"):
        write_huggingface(config, Transformer(config).state_dict(), clash, tmp_path)
