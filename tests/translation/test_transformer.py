import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradvac.translation.shapes import PRESETS, TransformerConfig
from gradvac.translation.transformer import Transformer, sinusoids


def toy(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    shape = dict(d_model=16, d_ffn=32, heads=2, encoder_layers=2, decoder_layers=2, dropout=0.0)
    return Transformer(TransformerConfig(vocabulary_size=11, **(shape | changes))).double()


SOURCE = torch.tensor([[5, 6, 7, 3], [8, 3, 0, 0]])
TARGET_IN = torch.tensor([[2, 9, 4], [2, 10, 0]])
TARGET_OUT = torch.tensor([[9, 4, 3], [10, 3, 0]])


def closed_form(vocabulary: int, d: int, ffn: int, encoder: int, decoder: int) -> int:
    """Attention 4 d (d + 1), feed-forward 2 d ffn + ffn + d, norm 2 d; one tied matrix."""
    attention, feed_forward, norm = 4 * d * (d + 1), 2 * d * ffn + ffn + d, 2 * d
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    return vocabulary * d + encoder * encoder_layer + decoder * decoder_layer + 2 * norm


def parameters(preset: str, vocabulary: int) -> int:
    with torch.device("meta"):
        model = Transformer(TransformerConfig(vocabulary, **PRESETS[preset]))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_count_is_the_closed_form(preset: str) -> None:
    shape = PRESETS[preset]
    expected = closed_form(
        8000, shape["d_model"], shape["d_ffn"], shape["encoder_layers"], shape["decoder_layers"]
    )
    assert parameters(preset, 8000) == expected


def test_the_starting_model_fits_its_budget() -> None:
    assert parameters("tiny", 8000) < 3_900_000


def test_big_is_the_model_of_chen_et_al() -> None:
    """Table 1 of Chen et al. 2018a: 375.4 M with three untied matrices of 32k subwords."""
    tied = parameters("big", 32_000)
    assert round((tied + 2 * 32_000 * 1024) / 1e6, 1) == 375.4
    assert round(parameters("big", 64_000) / 1e6, 1) == 342.6


def test_one_matrix_is_embedding_and_softmax() -> None:
    names = [name for name, p in toy().named_parameters() if p.shape == (11, 16)]
    assert names == ["embedding.weight"]
    assert set(toy().state_dict()) == {name for name, _ in toy().named_parameters()}


def peer(model: Transformer) -> nn.Transformer:
    """torch.nn.Transformer carrying the same weights."""
    c = model.config
    twin = nn.Transformer(
        c.d_model, c.heads, c.encoder_layers, c.decoder_layers, c.d_ffn, 0.0, c.activation,
        batch_first=True, norm_first=c.norm == "pre",
    ).double()  # fmt: skip
    if c.norm == "post":
        twin.encoder.norm = twin.decoder.norm = None
    state = {}
    kinds = {
        "feed_forward.up": "linear1", "feed_forward.down": "linear2",
        "self_attention.o": "self_attn.out_proj", "cross_attention.o": "multihead_attn.out_proj",
        "self_attention_norm": "norm1",
    }  # fmt: skip
    ours = dict(model.named_parameters())
    for name, value in ours.items():
        if name == "embedding.weight" or ".k." in name or ".v." in name:
            continue
        stack, _, rest = name.partition(".")
        kind, _, leaf = rest.rpartition(".")
        if kind.endswith(".q"):
            value = torch.cat([ours[name.replace(".q.", f".{p}.")] for p in "qkv"])
            kind = kind.removesuffix(".q").replace("self_attention", "self_attn")
            state[f"{stack}.{kind}.in_proj_{leaf}".replace("cross_attention", "multihead_attn")] = (
                value
            )
            continue
        kinds["cross_attention_norm"] = "norm2"
        kinds["feed_forward_norm"] = "norm2" if stack == "encoder" else "norm3"
        for old, new in kinds.items():
            kind = kind.replace(old, new) if kind.endswith(old) else kind
        state[f"{stack}.{kind}.{leaf}"] = value
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_hidden_states_equal_torch_nn_transformer(norm: str, activation: str) -> None:
    model = toy(norm=norm, activation=activation)
    twin = peer(model)
    position = sinusoids(4, 16)

    def embed(tokens: Tensor) -> Tensor:
        return model.embedding(tokens) * 4.0 + position[: tokens.shape[1]]

    expected = twin(
        embed(SOURCE),
        embed(TARGET_IN),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.float64),
        src_key_padding_mask=SOURCE == 0,
        memory_key_padding_mask=SOURCE == 0,
    )
    hidden = model(SOURCE, TARGET_IN)
    real = TARGET_IN != 0
    torch.testing.assert_close(hidden[real], expected[real], rtol=1e-10, atol=1e-10)


def test_positions_are_the_papers_formula() -> None:
    table = sinusoids(7, 6)
    for position in range(7):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 3 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_positions_grow_on_demand() -> None:
    model = toy()
    long = torch.full((1, 600), 5)
    expected = model.embedding(long) * 4.0 + sinusoids(600, 16)
    torch.testing.assert_close(model.embed(long), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_token_losses_equal_cross_entropy_of_torch(eps: float) -> None:
    model = toy()
    loss, nll, rows = model.token_losses(SOURCE, TARGET_IN, TARGET_OUT, eps)
    assert rows.tolist() == [0, 0, 0, 1, 1]
    loss.sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    logits = model.logits(model(SOURCE, TARGET_IN)).flatten(0, 1)
    gold = TARGET_OUT.flatten()
    real = gold != 0
    expected = F.cross_entropy(logits, gold, label_smoothing=eps, reduction="none")[real]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nll, F.cross_entropy(logits, gold, reduction="none")[real])
    assert not nll.requires_grad
    expected.sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-10, atol=1e-12)


def test_bfloat16_autocast_changes_only_the_last_digits() -> None:
    model = toy().float()
    exact = model.token_losses(SOURCE, TARGET_IN, TARGET_OUT, 0.1)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.token_losses(SOURCE, TARGET_IN, TARGET_OUT, 0.1)[0]
    rounded.sum().backward()
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05)  # bfloat16 has 8 bits


def test_a_sentence_does_not_see_its_batch() -> None:
    model = toy()
    together = model.token_losses(SOURCE, TARGET_IN, TARGET_OUT)[0]
    alone = model.token_losses(SOURCE[1:, :2], TARGET_IN[1:, :2], TARGET_OUT[1:, :2])[0]
    torch.testing.assert_close(together[3:], alone, rtol=1e-12, atol=1e-12)


def test_training_is_deterministic_for_a_seed() -> None:
    runs = []
    for _ in range(2):
        model = toy(dropout=0.3, attention_dropout=0.1, activation_dropout=0.1).train()
        torch.manual_seed(3)
        model.token_losses(SOURCE, TARGET_IN, TARGET_OUT, 0.1)[0].sum().backward()
        runs.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_steps_with_a_cache_equal_the_whole_target_at_once(norm: str) -> None:
    model = toy(norm=norm).eval()
    expected = model.logits(model(SOURCE, TARGET_IN))
    cache = model.start(SOURCE)
    for t in range(3):
        logits = model.step(TARGET_IN[:, t], cache)
        torch.testing.assert_close(logits, expected[:, t], rtol=1e-10, atol=1e-10)


def test_reorder_moves_hypotheses_and_drops_sentences() -> None:
    model = toy().eval()
    cache = model.start(SOURCE)
    # Two hypotheses for each of the two sentences; then the second sentence goes on alone,
    # with its hypotheses swapped.
    model.step(torch.tensor([2, 2, 2, 2]), cache)
    model.step(torch.tensor([5, 6, 7, 8]), cache)
    cache.reorder(torch.tensor([3, 2]), torch.tensor([1]))
    logits = model.step(torch.tensor([9, 10]), cache)
    for row, prefix in enumerate(([2, 8, 9], [2, 7, 10])):
        expected = model.logits(model(SOURCE[1:], torch.tensor([prefix])))[0, -1]
        torch.testing.assert_close(logits[row], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "d_model is 16, heads is 3"),
        ({"d_ffn": 0}, "d_ffn is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm": "middle"}, "norm is 'middle'; allowed: 'pre', 'post'"),
        ({"activation": "swish"}, "activation is 'swish'"),
        ({"pad": 11}, "pad is 11"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**changes)
