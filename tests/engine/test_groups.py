import pytest
import torch
from torch import nn

from gradvac.engine import GRANULARITIES, parameter_groups
from gradvac.errors import GradientError

# Names as the models of Hugging Face transformers give them (5.x, read off the real models).
BERT = [
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.LayerNorm.weight:1",
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.0.attention.self.query.bias:1",
    "bert.encoder.layer.0.attention.output.LayerNorm.weight:1",
    "bert.encoder.layer.1.attention.self.query.weight",
    "bert.pooler.dense.weight",
    "cls.predictions.transform.LayerNorm.weight:1",
]
LLAMA = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.input_layernorm.weight:1",
    "model.layers.1.mlp.up_proj.weight",
    "model.norm.weight:1",
    "lm_head.weight",
]
T5 = [
    "shared.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "encoder.block.0.layer.0.layer_norm.weight:1",
    "encoder.block.0.layer.1.DenseReluDense.wo.weight",
    "encoder.block.1.layer.0.SelfAttention.q.weight",
    "encoder.final_layer_norm.weight:1",
    "decoder.block.0.layer.1.EncDecAttention.q.weight",
    "decoder.final_layer_norm.weight:1",
]
GPT2 = [
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "transformer.h.0.attn.c_attn.weight",
    "transformer.h.0.ln_1.weight:1",
    "transformer.h.1.mlp.c_fc.weight",
    "transformer.ln_f.weight:1",
]
MARIAN = [
    "model.shared.weight",
    "model.encoder.layers.0.fc1.weight",
    "model.encoder.layers.1.fc1.weight",
    "model.decoder.layers.0.fc1.weight",
]
OPT = [
    "model.decoder.embed_tokens.weight",
    "model.decoder.embed_positions.weight",
    "model.decoder.final_layer_norm.weight:1",
    "model.decoder.layers.0.fc1.weight",
    "model.decoder.layers.1.fc1.weight",
]
OURS = [
    "embedding.weight",
    "encoder.layers.0.self_attention.q.weight",
    "encoder.layers.0.self_attention_norm.weight:1",
    "encoder.layers.1.feed_forward.up.weight",
    "encoder.norm.weight:1",
    "decoder.layers.0.cross_attention.k.weight",
    "decoder.norm.weight:1",
]


def grouped(listed, granularity):
    """Group name of every parameter, for names listed as ``name`` or ``name:dimensions``."""
    named = []
    for entry in listed:
        name, _, ndim = entry.partition(":")
        named.append((name, nn.Parameter(torch.zeros([2] * int(ndim or 2)))))
    groups = parameter_groups(named, granularity)
    found = {name: group.name for group in groups for name in group.names}
    return [found[name] for name, _ in named]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (BERT, ["E", "E", "0", "0", "0", "1", "H", "H"]),
        (LLAMA, ["E", "0", "0", "1", "1", "E"]),
        (T5, ["E", "e0", "e0", "e0", "e1", "e1", "d0", "d0"]),
        (GPT2, ["E", "E", "0", "0", "1", "1"]),
        (MARIAN, ["E", "e0", "e1", "d0"]),
        (OPT, ["E", "E", "d1", "d0", "d1"]),
        (OURS, ["E", "e0", "e0", "e1", "e1", "d0", "d0"]),
    ],
)
def test_a_layer_is_a_transformer_layer(listed, expected):
    def short(group):
        if group in ("embedding", "head"):
            return group[0].upper()
        side = "e" if "encoder" in group else "d" if "decoder" in group else ""
        return ("" if group.startswith("bert.") else side) + group[-1]

    assert [short(group) for group in grouped(listed, "all_layer")] == expected


def test_layers_carry_their_path():
    assert grouped(T5, "all_layer")[1] == "encoder.block.0"
    assert grouped(GPT2, "all_layer")[2] == "transformer.h.0"


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (BERT, ["embedding"] * 2 + ["encoder"] * 4 + ["head"] * 2),
        (T5, ["embedding"] + ["encoder"] * 5 + ["decoder"] * 2),
        (MARIAN, ["embedding"] + ["encoder"] * 2 + ["decoder"]),
        (OPT, ["decoder"] * 5),
        (LLAMA, ["embedding"] + ["model.layers"] * 4 + ["embedding"]),
        (OURS, ["embedding"] + ["encoder"] * 4 + ["decoder"] * 2),
    ],
)
def test_encoder_and_decoder_and_what_they_share(listed, expected):
    assert grouped(listed, "enc_dec") == expected


def test_matrices_take_their_vectors_along():
    groups = grouped(BERT, "all_matrix")
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert groups[1] == "bert.embeddings.word_embeddings.weight"
    assert groups[2:5] == [query] * 3
    assert groups[6:] == ["bert.pooler.dense.weight"] * 2
    groups = grouped(T5, "all_matrix")
    assert groups[2] == "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert groups[5] == "encoder.block.1.layer.0.SelfAttention.q.weight"


def test_every_parameter_of_a_torch_layer_is_in_exactly_one_group():
    # A peer counts leaf modules and so misses in_proj_weight: 1,408 of these 2,224 parameters.
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    total = sum(p.numel() for p in layer.parameters())
    assert total == 2224
    for granularity in GRANULARITIES:
        groups = parameter_groups(model, granularity)
        assert sum(p.numel() for g in groups for p in g.parameters) == 3 * total
        assert sorted(n for g in groups for n in g.names) == sorted(
            name for name, _ in model.named_parameters()
        )
    by_layer = parameter_groups(model, "all_layer")
    assert [g.name for g in by_layer] == ["layers.0", "layers.1", "layers.2"]
    by_matrix = parameter_groups(model, "all_matrix")
    assert len(by_matrix) == 3 * 4
    assert by_matrix[0].names == (
        "layers.0.self_attn.in_proj_weight",
        "layers.0.self_attn.in_proj_bias",
    )


def test_a_model_without_stack_has_a_layer_per_child():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert [g.name for g in parameter_groups(model, "all_layer")] == ["0", "2"]
    assert [g.name for g in parameter_groups(model, "enc_dec")] == ["whole_model"]
    assert len(parameter_groups(nn.Linear(2, 2), "all_matrix")) == 1


def test_a_function_may_group_by_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = parameter_groups(model, lambda name: name.rpartition(".")[2])
    assert [(g.name, g.names) for g in groups] == [
        ("weight", ("0.weight", "1.weight")),
        ("bias", ("0.bias", "1.bias")),
    ]


def test_frozen_parameters_are_left_out_and_tied_ones_counted_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    (group,) = parameter_groups(model, "whole_model")
    assert group.names == ("0.weight", "0.bias", "1.bias")
    repeated = list(model.named_parameters(remove_duplicate=False))
    assert parameter_groups(repeated, "whole_model")[0].names == group.names


def test_a_compiled_model_has_the_groups_of_the_plain_one():
    named = [("_orig_mod.layers.0.weight", nn.Parameter(torch.zeros(2, 2)))]
    assert parameter_groups(named, "all_layer")[0].name == "layers.0"


def test_errors():
    with pytest.raises(GradientError, match=r"'all_layers'.*did you mean 'all_layer'"):
        parameter_groups(nn.Linear(1, 1), "all_layers")
    with pytest.raises(GradientError, match="no trainable parameter"):
        parameter_groups(nn.Linear(1, 1).requires_grad_(False), "whole_model")
