import sys
from pathlib import Path

import ctranslate2
import pytest
import torch

from gradvac.errors import RunError
from gradvac.experiment.run.checkpoint import load_tensors
from gradvac.translation.search import MAX_LENGTH_OFFSET, MAX_LENGTH_RATIO, divisor
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.to_ctranslate2 import ExportedModel, write_ctranslate2
from gradvac.translation.transformer import Transformer
from gradvac.translation.vocabulary import Vocabulary
from tests.translation.exported import (
    KINDS,
    ours,
    padded,
    shipped,
    shipped_sources,
    toy,
    toy_vocabulary,
)

SOURCES = [[5, 40, 50, 60, 3], [4, 70, 3], [5, 200, 3]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, as CTranslate2's."""
    folder = tmp_path_factory.mktemp("ctranslate2")
    found = shipped()
    write_ctranslate2(found.config, load_tensors(found.parameters), found.vocabulary, folder)
    return folder


def log_p(
    model: Transformer, vocabulary: Vocabulary, source: list[int], target: list[int]
) -> torch.Tensor:
    """Log-probabilities ``[t]`` of the target and eos among what a translation may contain."""
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([source]), torch.tensor([[2, *target]])))[0]
    logits[:, vocabulary.forbidden] = -torch.inf
    wanted = torch.tensor([*target, vocabulary.eos])
    return logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]


@pytest.mark.parametrize(("norm", "activation"), KINDS)
def test_probabilities_are_ours_for_every_kind(norm: str, activation: str, tmp_path: Path) -> None:
    model, vocabulary = toy(norm, activation), toy_vocabulary()
    write_ctranslate2(model.config, model.state_dict(), vocabulary, tmp_path)
    other = ctranslate2.Translator(str(tmp_path), intra_threads=1)
    targets = [[80, 90, 100], [110], [120, 130, 140, 150, 160]]
    pieces = [
        [[vocabulary.pieces.id_to_piece(i) for i in x] for x in y] for y in (SOURCES, targets)
    ]
    scored = other.score_batch(*pieces)
    for result, source, target in zip(scored, SOURCES, targets, strict=True):
        expected = log_p(model, vocabulary, source, target)
        assert result.log_probs == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(("norm", "activation"), KINDS)
def test_greedy_search_is_ours_up_to_each_limit(norm: str, activation: str, tmp_path: Path) -> None:
    model, vocabulary = toy(norm, activation, seed=1), toy_vocabulary()
    with torch.no_grad():  # one that never ends of its own will: only the limits end it
        model.embedding.weight[vocabulary.eos] = 0
    write_ctranslate2(model.config, model.state_dict(), vocabulary, tmp_path)
    expected = ours(model, vocabulary, SOURCES)
    limits = [MAX_LENGTH_RATIO * len(source) + MAX_LENGTH_OFFSET for source in SOURCES]
    assert any(len(x) == limit for x, limit in zip(expected, limits, strict=True))
    other = ExportedModel(tmp_path, threads=1)
    assert other.search(SOURCES, vocabulary, beam=1, length_penalty=1.0) == expected


def test_the_shipped_model_translates_alike(exported: Path) -> None:
    found, other = shipped(), ExportedModel(exported, threads=1)
    model, vocabulary, sources = found.load(), found.vocabulary, shipped_sources(4)
    greedy = other.search(sources, vocabulary, beam=1, length_penalty=0.6)
    assert greedy == ours(model, vocabulary, sources)
    # Its beam search is another one: what it finds is to be as good, by our score, as ours.
    wide = other.search(sources, vocabulary, beam=4, length_penalty=0.6)
    own = ours(model, vocabulary, sources, beam=4)

    def score(source: list[int], target: list[int]) -> float:
        total = log_p(model, vocabulary, source, target).sum().item()
        return total / divisor(len(target) + 1, 0.6)

    gained = [
        (score(s, x), score(s, y), score(s, z))
        for s, x, y, z in zip(sources, greedy, own, wide, strict=True)
    ]
    mean = torch.tensor(gained, dtype=torch.float64).mean(0)
    assert mean[1] > mean[0] + 0.01  # a beam is worth something here
    assert mean[2] == pytest.approx(mean[1].item(), abs=0.01)


def test_quantization_makes_it_small_and_keeps_it_near(exported: Path, tmp_path: Path) -> None:
    found = shipped()
    tensors = load_tensors(found.parameters)
    write_ctranslate2(found.config, tensors, found.vocabulary, tmp_path, "int8")
    size = [(folder / "model.bin").stat().st_size for folder in (exported, tmp_path)]
    assert size[1] < 0.35 * size[0]
    sources = shipped_sources(4)
    texts = [
        [
            found.vocabulary.decode(tokens)
            for tokens in ExportedModel(folder, threads=1).search(
                sources, found.vocabulary, beam=1, length_penalty=0.6
            )
        ]
        for folder in (exported, tmp_path)
    ]
    assert sum(x == y for x, y in zip(*texts, strict=True)) > len(sources) // 2


def test_what_cannot_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = toy_vocabulary()
    routed = TransformerConfig(len(vocabulary), 16, 24, 2, 1, 1, clsr_tags=(4, 5))
    with pytest.raises(RunError, match=r"clsr: .*no counterpart in CTranslate2"):
        write_ctranslate2(routed, {}, vocabulary, tmp_path)
    model = toy("pre", "relu")
    with pytest.raises(RunError, match=r"quantization 'int4'; allowed: float32, .*int8"):
        write_ctranslate2(model.config, model.state_dict(), vocabulary, tmp_path, "int4")
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(RunError, match=r"pip install 'gradvac\[export\]'"):
        write_ctranslate2(model.config, model.state_dict(), vocabulary, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_longest_source_has_positions_to_the_end(tmp_path: Path) -> None:
    model, vocabulary = toy("pre", "relu"), toy_vocabulary()
    write_ctranslate2(model.config, model.state_dict(), vocabulary, tmp_path)
    source = [5, *([60, 70] * 255), 3]
    best = ExportedModel(tmp_path, threads=1).search(
        [source], vocabulary, beam=1, length_penalty=1.0
    )
    with torch.no_grad():
        logits = model.logits(model(padded([source]), torch.tensor([[2, *best[0]]])))[0]
    logits[:, vocabulary.forbidden] = -torch.inf
    assert logits[: len(best[0])].argmax(-1).tolist() == best[0]
