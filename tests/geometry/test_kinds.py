"""Granularities: every coarser Gram matrix is the sum of those of the parameters."""

import numpy as np
import pytest
import torch
from torch import nn

from gradvac.engine import GRANULARITIES, parameter_groups
from gradvac.errors import GradientError
from gradvac.geometry.kinds import MEASURED, coarser, group_of, parameter_kind, summed
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer

CONFIG = TransformerConfig(20, d_model=8, d_ffn=12, heads=2, encoder_layers=2, decoder_layers=2)

# Names as the libraries give them, the kind written down by hand.
NAMES = {
    "encoder.layers.0.self_attention.q.weight": "encoder.self_attention.q",
    "decoder.layers.1.cross_attention.o.bias": "decoder.cross_attention.o",
    "decoder.layers.1.cross_attention_norm.weight": "decoder.norm",
    "encoder.layers.0.feed_forward.up.weight": "encoder.feed_forward.1",
    "encoder.layers.0.feed_forward.down.bias": "encoder.feed_forward.2",
    "embedding.weight": "embedding",
    # Marian, BART, mBART, M2M-100, NLLB; fairseq
    "model.encoder.layers.5.self_attn.out_proj.weight": "encoder.self_attention.o",
    "model.decoder.layers.0.encoder_attn.k_proj.bias": "decoder.cross_attention.k",
    "model.decoder.layers.0.encoder_attn_layer_norm.weight": "decoder.norm",
    "model.encoder.layers.0.fc1.weight": "encoder.feed_forward.1",
    "model.encoder.layers.0.fc2.weight": "encoder.feed_forward.2",
    "model.encoder.embed_positions.weight": "embedding",
    "model.shared.weight": "embedding",
    "final_logits_bias": "embedding",
    # T5
    "encoder.block.0.layer.0.SelfAttention.v.weight": "encoder.self_attention.v",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "embedding",
    "decoder.block.0.layer.1.EncDecAttention.q.weight": "decoder.cross_attention.q",
    "decoder.block.0.layer.2.DenseReluDense.wi_0.weight": "decoder.feed_forward.1",
    "decoder.block.0.layer.2.DenseReluDense.wo.weight": "decoder.feed_forward.2",
    "encoder.block.0.layer.0.layer_norm.weight": "encoder.norm",
    # BERT, XLM-R
    "bert.encoder.layer.3.attention.self.query.weight": "encoder.self_attention.q",
    "bert.encoder.layer.3.attention.output.dense.weight": "encoder.self_attention.o",
    "bert.encoder.layer.3.attention.output.LayerNorm.weight": "encoder.norm",
    "bert.encoder.layer.3.intermediate.dense.weight": "encoder.feed_forward.1",
    "bert.encoder.layer.3.output.dense.weight": "encoder.feed_forward.2",
    "bert.embeddings.word_embeddings.weight": "embedding",
    "classifier.weight": "other",
    # nn.Transformer
    "decoder.layers.0.multihead_attn.in_proj_weight": "decoder.cross_attention.qkv",
    "encoder.layers.0.self_attn.out_proj.bias": "encoder.self_attention.o",
    "encoder.layers.0.linear1.weight": "encoder.feed_forward.1",
    "encoder.layers.0.norm2.bias": "encoder.norm",
    # GPT-2, Llama
    "transformer.h.0.attn.c_attn.weight": "self_attention.qkv",
    "transformer.h.0.attn.c_proj.weight": "self_attention.o",
    "transformer.h.0.mlp.c_fc.weight": "feed_forward.1",
    "transformer.h.0.mlp.c_proj.weight": "feed_forward.2",
    "transformer.h.0.ln_1.weight": "norm",
    "transformer.wte.weight": "embedding",
    "model.layers.0.mlp.gate_proj.weight": "feed_forward.1",
    "model.layers.0.mlp.down_proj.weight": "feed_forward.2",
    "model.layers.0.post_attention_layernorm.weight": "norm",
    "lm_head.weight": "embedding",
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_the_kind_of_a_parameter(name: str, kind: str) -> None:
    assert parameter_kind(name) == kind


def test_every_parameter_of_the_transformer_has_a_kind() -> None:
    kinds = {parameter_kind(name) for name, _ in Transformer(CONFIG).named_parameters()}
    sides = {"encoder": ("self_attention",), "decoder": ("self_attention", "cross_attention")}
    wanted = {f"{s}.{a}.{r}" for s, attentions in sides.items() for a in attentions for r in "qkvo"}
    wanted |= {f"{s}.{k}" for s in sides for k in ("norm", "feed_forward.1", "feed_forward.2")}
    assert kinds == wanted | {"embedding"}


@pytest.mark.parametrize("granularity", [g for g in MEASURED if g != "all_adapter"])
def test_sums_over_parameters_equal_the_gram_of_the_group(granularity: str) -> None:
    model = Transformer(CONFIG).double()
    random = torch.Generator().manual_seed(0)
    j = {
        name: torch.randn(3, *p.shape, generator=random, dtype=torch.float64)
        for name, p in model.named_parameters()
    }
    gram = np.array([(g.flatten(1) @ g.flatten(1).T).numpy() for g in j.values()])
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    mapping = coarser(list(j), "parameter", shapes)[granularity]
    names, found = summed(gram, list(j), mapping)

    if granularity in GRANULARITIES:
        members = {g.name: g.names for g in parameter_groups(model, granularity)}
    else:
        kind = parameter_kind if granularity == "parameter_kind" else str
        members = {}
        for name in j:
            members.setdefault(kind(name), []).append(name)
    assert set(names) == set(members)
    for name, total in zip(names, found, strict=True):
        flat = torch.cat([j[n].flatten(1) for n in members[name]], 1)
        assert total == pytest.approx((flat @ flat.T).numpy(), rel=1e-12)


def test_groups_of_layers_sum_to_sides_and_the_whole_model() -> None:
    groups = [g.name for g in parameter_groups(Transformer(CONFIG), "all_layer")]
    found = coarser(groups, "all_layer")
    assert list(found) == ["all_layer", "enc_dec", "whole_model"]
    assert found["enc_dec"] == {
        "embedding": "embedding",
        "encoder.layers.0": "encoder",
        "encoder.layers.1": "encoder",
        "decoder.layers.0": "decoder",
        "decoder.layers.1": "decoder",
    }
    assert set(found["whole_model"].values()) == {"whole_model"}


def test_what_cannot_be_computed_is_not_offered() -> None:
    assert list(coarser(["encoder", "decoder"], "enc_dec")) == ["enc_dec", "whole_model"]
    assert list(coarser(["whole_model"], "whole_model")) == ["whole_model"]
    assert list(coarser(["mine", "yours"], "own")) == ["own", "whole_model"]
    assert not {"all_matrix", "all_adapter"} & set(coarser(["a.weight"], "parameter"))
    assert "all_adapter" not in coarser(["a.weight"], "parameter", {"a.weight": (2, 2)})
    shapes = {f"a.lora_{letter}.default.weight": (2, 2) for letter in "AB"}
    found = coarser(list(shapes), "parameter", shapes)
    assert (
        set(found["all_adapter"].values()) == {"a"} and len(set(found["all_matrix"].values())) == 2
    )
    assert "all_module" not in coarser(["h.0.attn.a", "h.0.attn.b"], "all_matrix")
    assert list(coarser(["h.0.self_attention", "h.0.feed_forward"], "all_module")) == [
        "all_module", "all_layer", "enc_dec", "whole_model",
    ]  # fmt: skip


def test_an_unknown_granularity_is_refused_by_name() -> None:
    with pytest.raises(GradientError, match=r"'all_layers'.*did you mean 'all_layer'"):
        group_of({"a.weight": (2, 2)}, "all_layers")


def test_vectors_join_their_matrix_as_in_the_engine() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    found = group_of(shapes, "all_matrix")
    groups = parameter_groups(model, "all_matrix")
    assert found == {n: g.name for g in groups for n in g.names}
