"""From words to numbers and back: first subwords, masks, and the model the engine splits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gradvac.data.batches import collate
from gradvac.data.encoded import EncodedTask
from gradvac.experiment.tagging.evaluate import tag_words
from gradvac.tagging.encoder import label_losses
from gradvac.tagging.encoding import (
    IGNORED,
    counted_by_sentence,
    encode_tagged,
    encode_text,
    masked,
    token_batch,
)
from gradvac.tagging.readers import Tagged
from tests.engine.partition import largest_error
from tests.tagging.helpers import LABELS, SHAPE, make_tokenizer, tagged_rows

transformers = pytest.importorskip("transformers")


def sentences(n=5, suffix="u"):
    rows = [list(zip(*row, strict=True)) for row in tagged_rows(suffix, n)]
    return [Tagged(words, tags, "") for words, tags in rows]


def batch_of(tokenizer, found, max_tokens=24):
    side, owner = encode_tagged(found, tokenizer, LABELS, max_tokens)
    task, every = counted_by_sentence(side), np.arange(len(side))
    drawn = collate({"fr": task}, ("fr",), np.zeros(len(side), np.int64), every)
    return token_batch(drawn, len(LABELS), tokenizer.pad_token_id), owner


@pytest.mark.parametrize("bert", [True, False], ids=["bert", "xlm-roberta"])
def test_the_first_subword_of_each_word_has_its_label(bert):
    tokenizer = make_tokenizer(bert)
    found = sentences()
    batch, owner = batch_of(tokenizer, found)
    assert owner.tolist() == list(range(len(found)))
    for row, s in enumerate(found):
        ids, labels = [tokenizer.cls_token_id], [IGNORED]
        for word, tag in zip(s.words, s.tags, strict=True):  # word by word, the slow way
            pieces = tokenizer([word], is_split_into_words=True, add_special_tokens=False)
            ids += pieces["input_ids"]
            labels += [LABELS.index(tag)] + [IGNORED] * (len(pieces["input_ids"]) - 1)
        ids.append(tokenizer.sep_token_id)
        labels.append(IGNORED)
        n = int(batch.mask[row].sum())
        assert batch.ids[row, :n].tolist() == ids
        assert batch.labels[row, :n].tolist() == labels
        assert set(batch.ids[row, n:].tolist()) <= {tokenizer.pad_token_id}
    assert max(batch.mask.sum(1)) > max(len(s.words) for s in found) + 2  # some words are in pieces
    assert batch.counts == {"fr": sum(map(len, (s.words for s in found)))} == {"fr": batch.tokens}


@pytest.mark.parametrize("limit", [3, 4, 5, 7])
def test_long_sentences_are_cut_between_words_and_every_word_has_its_label(limit):
    tokenizer = make_tokenizer()
    found = sentences(6)
    batch, owner = batch_of(tokenizer, found, limit)
    assert (batch.mask.sum(1) <= limit).all() and len(owner) > len(found)
    labels = [[] for _ in found]
    for n, row in zip(owner, batch.labels, strict=True):
        labels[n] += [LABELS[i] for i in row.tolist() if i != IGNORED]
    assert labels == [list(s.tags) for s in found]
    if limit == 7:  # no word was longer than that: the pieces hold all subwords
        for n, s in enumerate(found):
            rows = [batch.ids[i][batch.mask[i] == 1][1:-1] for i in np.flatnonzero(owner == n)]
            whole = tokenizer(list(s.words), is_split_into_words=True, add_special_tokens=False)
            assert torch.cat(rows).tolist() == whole["input_ids"]


def test_a_word_of_nothing_is_unknown():
    tokenizer = make_tokenizer()
    odd = Tagged(("\u200d", "file"), ("NOUN", "VERB"), "")  # BERT's normaliser leaves nothing
    batch, _ = batch_of(tokenizer, [odd], 9)
    assert batch.ids[0, 1] == tokenizer.unk_token_id
    assert batch.tokens == 2


@pytest.mark.parametrize("limit", [3, 5, 24])
def test_every_word_of_a_long_sentence_is_tagged(limit):
    """Each piece by itself through the model, the slow way."""
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=len(tokenizer), num_labels=len(LABELS), **SHAPE)
    model = transformers.BertForTokenClassification(config).eval()
    found = sentences(7)
    words = [list(s.words) for s in found]
    guessed = tag_words(
        model, tokenizer, LABELS, words, max_tokens=limit, device=torch.device("cpu")
    )
    assert [len(g) for g in guessed] == [len(w) for w in words]
    side, owner = encode_tagged(found, tokenizer, LABELS, limit)
    slow = [[] for _ in found]
    for n, i in zip(owner, range(len(side)), strict=True):
        stored = torch.tensor(side[i].astype(np.int64)) - 1
        ids, labels = stored // (len(LABELS) + 1), stored % (len(LABELS) + 1)
        with torch.no_grad():
            best = model(input_ids=ids[None]).logits[0].argmax(-1)
        slow[n] += [LABELS[k] for k in best[labels > 0].tolist()]
    assert guessed == slow


def test_a_part_of_a_batch_is_what_its_task_alone_would_be():
    tokenizer = make_tokenizer()
    batch, _ = batch_of(tokenizer, sentences(6))
    batch = replace(batch, task=torch.tensor([0, 1, 0, 1, 0, 1]), tasks=("de", "fr"))
    part = batch.of_task(1)
    assert part.sentence.tolist() == [1, 3, 5]
    assert part.counts == {"fr": batch.counts["fr"]}
    assert part.padding < 1
    assert int(part.mask.sum(1).max()) == part.ids.shape[1]


def test_masking_hides_a_share_of_what_may_be_hidden():
    tokenizer = make_tokenizer()
    texts = [" ".join(s.words) for s in sentences(200)]
    side = encode_text(texts, tokenizer, 24)
    every = np.arange(200)
    drawn = collate({"fr": EncodedTask(side, side)}, ("fr",), every * 0, every)
    plain = token_batch(drawn, 0, tokenizer.pad_token_id)
    hidden = masked(
        plain, probability=0.3, mask_id=tokenizer.mask_token_id,
        special=tokenizer.all_special_ids, vocabulary_size=len(tokenizer),
        rng=np.random.default_rng(0),
    )  # fmt: skip
    chosen = hidden.labels != IGNORED
    assert torch.equal(hidden.labels[chosen], plain.ids[chosen])
    assert torch.equal(hidden.ids[~chosen], plain.ids[~chosen])
    special = torch.isin(plain.ids, torch.tensor(tokenizer.all_special_ids))
    assert not (chosen & special).any() and chosen.any(1).all()
    share = chosen.sum() / (~special).sum()
    assert 0.27 < share < 0.36  # 0.3, and one more in sentences where nothing was chosen
    masks = (hidden.ids[chosen] == tokenizer.mask_token_id).float().mean()
    assert 0.74 < masks < 0.86


FIVE = ["a", "b", "c", "a", "c"]
TWELVE = "ar bg de en es fr hi hu mr ta te vi de en vi fr".split()  # 16 sentences


@pytest.mark.parametrize("tasks", [FIVE, TWELVE], ids=["3 tasks", "12 tasks"])
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_the_single_pass_is_exact_on_a_token_classifier(kind, tasks):
    """Task gradients of one backward pass against one backward pass per task, in float64."""
    tokenizer = make_tokenizer(kind == "bert")
    batch, _ = batch_of(tokenizer, sentences(len(tasks)))
    common = dict(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=len(LABELS),
        **SHAPE,
    )  # fmt: skip
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(max_position_embeddings=24, **common)
        model = transformers.BertForTokenClassification(config)
    else:
        config = transformers.XLMRobertaConfig(max_position_embeddings=26, **common)
        model = transformers.XLMRobertaForTokenClassification(config)
    model = model.double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)

    def losses():
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        rows, places = (batch.labels != IGNORED).nonzero(as_tuple=True)
        labels = batch.labels[rows, places]
        return F.cross_entropy(logits[rows, places], labels, reduction="none"), rows

    assert largest_error(model, losses, tasks) < 1e-10
    model.eval()
    with torch.no_grad():
        (exact, rows), ours = losses(), label_losses(model, batch)  # which ends in float32
    torch.testing.assert_close(ours[0], exact.float())
    assert torch.equal(ours[2], rows)
