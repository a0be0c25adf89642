"""A small multilingual encoder: vocabulary, architecture, masked language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gradvac.data.sampling import sampling_probabilities
from gradvac.errors import RecipeError
from gradvac.tagging.encoder import transformers
from gradvac.tagging.encoding import IGNORED, TokenBatch

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(
    texts: Mapping[str, Sequence[str]], *, size: int, temperature: float, sample: int, seed: int
) -> Any:
    """A WordPiece tokenizer of ``size`` pieces, case kept, in the form that AutoTokenizer opens.

    ``texts``: language to sentences; ``sample`` of them are drawn without repetition, languages by
    temperature (Wang et al. 2021, appendix B).
    """
    import tokenizers as t

    rng = np.random.default_rng([seed, 7])
    shares = sampling_probabilities(np.array([len(x) for x in texts.values()]), temperature)
    drawn = []
    for sentences, share in zip(texts.values(), shares, strict=True):
        count = min(len(sentences), round(sample * share))
        rows = rng.choice(len(sentences), count, replace=False)
        drawn += [sentences[i] for i in sorted(rows)]
    inner = _with_pieces(t.models.WordPiece(unk_token="[UNK]"))
    alphabet, within = _characters(inner, drawn, size // 6)
    # The trainer numbers symbols in the order of a hash table, which differs in every run, and
    # merges equally frequent pairs by number. So all numbers are fixed here; single characters are
    # given like special tokens.
    trainer = t.trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL, *(f"##{c}" for c in within)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    inner.train_from_iterator(drawn, trainer)
    inner = _with_pieces(t.models.WordPiece(inner.get_vocab(), unk_token="[UNK]"))
    inner.add_special_tokens([*SPECIAL])
    begin, end = (inner.token_to_id(x) for x in ("[CLS]", "[SEP]"))
    inner.post_processor = t.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", begin), ("[SEP]", end)],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special: dict[str, Any] = dict(zip(names, SPECIAL, strict=True))
    return transformers().PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def _with_pieces(model: Any) -> Any:
    """A tokenizer around a WordPiece model: BERT's pre- and post-processing, case kept."""
    import tokenizers as t

    inner = t.Tokenizer(model)
    inner.normalizer = t.normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    inner.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
    inner.decoder = t.decoders.WordPiece()
    return inner


def _characters(inner: Any, texts: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """The ``most`` frequent characters, and those of them that also occur inside words.

    Rarer ones become [UNK]. ``most`` is a sixth of the pieces: single characters may take at most
    a third (chosen here), and each counts twice, inside a word and at its beginning.
    """
    counts, within = Counter[str](), set[str]()
    for text in texts:
        for word, _ in inner.pre_tokenizer.pre_tokenize_str(inner.normalizer.normalize_str(text)):
            counts.update(word)
            within.update(word[1:])
    alphabet = sorted(counts, key=lambda c: (-counts[c], c))[:most]
    return sorted(alphabet), sorted(within.intersection(alphabet))


def build_encoder(vocabulary_size: int, shape: Mapping[str, Any], seed: int) -> Any:
    """A BERT of ``shape``, keys of BertConfig, for masked text; initialised from ``seed``."""
    package = transformers()
    try:
        config = package.BertConfig(vocab_size=vocabulary_size, pad_token_id=0, **shape)
        torch.manual_seed(seed)
        return _without_ties(_masked_bert(config))
    except ValueError as e:
        raise RecipeError(f"model: {e}") from e


def _masked_bert(config: Any) -> Any:
    """A BertForMaskedLM that returns hidden states [B, S, d]; `masked_losses` calls its head.

    Hooks on the forward pass, such as the engine's, are on the call of the whole model.
    """
    package = transformers()

    class MaskedBert(package.BertForMaskedLM):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            found = self.bert(input_ids=input_ids, attention_mask=attention_mask)
            return found.last_hidden_state

    return MaskedBert(config)


def _without_ties(model: Any) -> Any:
    """Remove ties, so each parameter is stored once: a tensor file cannot hold shared memory.

    The softmax is the embedding (Press and Wolf 2017); loading ties them again.
    """
    tied = [
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if name not in dict(model.named_parameters())
    ]

    def drop(module: Any, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
        for name in tied:
            state.pop(prefix + name, None)

    def tie(module: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        own = dict(module.named_parameters(remove_duplicate=False))
        names = {id(p): name for name, p in module.named_parameters()}
        for name in tied:
            state[prefix + name] = state[prefix + names[id(own[name])]]

    model.register_state_dict_post_hook(drop)
    model.register_load_state_dict_pre_hook(tie)
    return model


def masked_losses(model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [N], negative log-likelihood [N] and sentence index [N] of each masked subword.

    The softmax is computed only at masked positions, a seventh of all.
    """
    states = model(input_ids=batch.ids, attention_mask=batch.mask)
    rows, places = (batch.labels != IGNORED).nonzero(as_tuple=True)
    logits = model.cls(states[rows, places]).float()
    nll = F.cross_entropy(logits, batch.labels[rows, places], reduction="none")
    return nll, nll.detach(), rows


def save_encoder_shape(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write configuration and tokenizer; with parameters added, it is a Hugging Face model."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["BertForMaskedLM"]
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
