import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gradvac.errors import RunError
from gradvac.translation.layers import Cache
from gradvac.translation.search import Hypothesis, beam_search
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer

PAD, BOS, EOS = 0, 2, 3
VOCABULARY = 8
FORBIDDEN = [0, 1, 2]


def toy(seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    shape = dict(d_model=8, d_ffn=16, heads=2, encoder_layers=1, decoder_layers=2)
    model = Transformer(TransformerConfig(VOCABULARY, **(shape | changes))).double()
    with torch.no_grad():
        model.embedding.weight *= 4  # far from uniform, so that the search has something to find
    return model


def log_p(model: Transformer, source: list[int], tokens: list[int]) -> Tensor:
    """From scratch, no cache: log-probabilities ``[t, V]`` of what follows each prefix."""
    model.eval()
    hidden = model(torch.tensor([source]), torch.tensor([[BOS, *tokens]]))
    return model.logits(hidden)[0].log_softmax(dim=-1)


def score(model: Transformer, source: list[int], tokens: list[int], alpha: float) -> float:
    rows = log_p(model, source, tokens)
    total = sum(rows[i, token].item() for i, token in enumerate([*tokens, EOS]))
    return total / ((5 + len(tokens) + 1) / 6) ** alpha


def search(model: Transformer, *sources: list[int], **options: Any) -> list[list[Hypothesis]]:
    longest = max(len(source) for source in sources)
    padded = torch.tensor([s + [PAD] * (longest - len(s)) for s in sources])
    return beam_search(model, padded, bos=BOS, eos=EOS, forbidden=FORBIDDEN, **options)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_a_wide_beam_finds_what_exhaustive_search_finds(norm: str, alpha: float) -> None:
    for seed in range(2):
        model = toy(seed, norm=norm)
        source = [5, 6, 3]
        everything = sorted(
            (
                (score(model, source, list(tokens), alpha), tokens)
                for length in range(1, 5)
                for tokens in itertools.product(range(4, VOCABULARY), repeat=length)
            ),
            reverse=True,
        )
        found = search(
            model, source, beam=400, n_best=5, length_penalty=alpha, min_length=1,
            max_length_ratio=0, max_length_offset=4,
        )[0]  # fmt: skip
        assert [h.tokens for h in found] == [tokens for _, tokens in everything[:5]]
        for hypothesis, (best, _) in zip(found, everything, strict=False):
            assert hypothesis.score == pytest.approx(best, abs=1e-12)


def literal_beam_search(
    model: Transformer, source: list[int], beam: int, alpha: float, limit: int
) -> tuple[float, tuple[int, ...]]:
    """One sentence, Python lists, no cache, no early stop."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, tuple[int, ...]]] = []
    for length in range(limit + 1):
        candidates = []
        for total, tokens in live:
            row = log_p(model, source, tokens)[-1]
            for token in range(VOCABULARY):
                ends = token == EOS
                if token in FORBIDDEN or (ends and length < 1) or (not ends and length == limit):
                    continue
                candidates.append((total + row[token].item(), [*tokens, token]))
        candidates.sort(key=lambda c: -c[0])
        candidates = candidates[: beam - len(done)]
        live = [c for c in candidates if c[1][-1] != EOS]
        for total, tokens in candidates:
            if tokens[-1] == EOS:
                done.append((total / ((5 + len(tokens)) / 6) ** alpha, tuple(tokens[:-1])))
    return max(done)


@pytest.mark.parametrize("beam", [1, 2, 4])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_cached_batched_search_equals_the_literal_one(beam: int, alpha: float) -> None:
    model = toy(4)
    sources = [[5, 6, 7, 4, 3], [7, 3], [4, 4, 3]]
    options = dict(beam=beam, length_penalty=alpha, max_length_ratio=1.5, max_length_offset=2)
    for source, found in zip(sources, search(model, *sources, **options), strict=True):
        limit = int(len(source) * 1.5) + 2
        expected_score, expected = literal_beam_search(model, source, beam, alpha, limit)
        assert found[0].tokens == expected
        assert found[0].score == pytest.approx(expected_score, abs=1e-10)


def test_greedy_is_the_argmax_at_each_step() -> None:
    for seed in range(5):
        model = toy(seed)
        tokens: list[int] = []
        while len(tokens) < 12:
            row = log_p(model, [6, 5, 3], tokens)[-1]
            row[FORBIDDEN] = -math.inf
            if not tokens:
                row[EOS] = -math.inf
            if (token := int(row.argmax())) == EOS:
                break
            tokens.append(token)
        found = search(model, [6, 5, 3], beam=1, max_length_ratio=0, max_length_offset=12)
        assert list(found[0][0].tokens) == tokens


def test_a_sentence_is_translated_the_same_in_any_company() -> None:
    model = toy(2)
    sources = [[5, 3], [4, 5, 6, 7, 6, 3], [7, 7, 7, 3], [6, 3]]
    together = search(model, *sources, beam=3, n_best=3)
    for source, expected in zip(sources, together, strict=True):
        alone = search(model, source, beam=3, n_best=3)[0]
        assert [h.tokens for h in alone] == [h.tokens for h in expected]
        assert [h.score for h in alone] == pytest.approx([h.score for h in expected], abs=1e-12)


def test_nothing_forbidden_and_nothing_too_short_or_long_comes_out() -> None:
    for seed in range(5):
        found = search(
            toy(seed), [5, 6, 3], beam=6, n_best=6,
            min_length=2, max_length_ratio=1, max_length_offset=1,
        )[0]  # fmt: skip
        for hypothesis in found:
            assert 2 <= len(hypothesis.tokens) <= 4
            assert not {*FORBIDDEN, EOS} & set(hypothesis.tokens)


def test_dropout_sleeps_during_the_search_and_wakes_after() -> None:
    model = toy(dropout=0.5).train()
    first, second = (search(model, [5, 6, 3]) for _ in range(2))
    assert first == second
    assert model.training and model.encoder.layers[0].training


def test_a_model_that_diverged_is_an_error() -> None:
    model = toy()
    with torch.no_grad():
        model.embedding.weight.fill_(math.nan)
    with pytest.raises(RunError, match="diverged"):
        search(model, [5, 3])


@pytest.mark.parametrize(
    "options", [{"beam": 0}, {"beam": 2, "n_best": 3}, {"length_penalty": -1.0}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it must"):
        search(toy(), [5, 3], **options)


def test_no_more_is_computed_than_hypotheses_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy(seed=2)
    rows: list[int] = []
    step = model.step

    def counted(tokens: Tensor, cache: Cache) -> Tensor:
        rows.append(len(tokens))
        return step(tokens, cache)

    monkeypatch.setattr(model, "step", counted)
    (found,) = search(model, [5, 6, 7, 3], beam=4, n_best=4)
    ended = [len(hypothesis.tokens) for hypothesis in found]
    assert rows[0] == 1 and max(rows) > 1
    for t, alive in enumerate(rows):
        assert alive <= 4 - sum(length < t for length in ended)
