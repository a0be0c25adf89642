"""Names of parameters against the modules that real models keep them in."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from gradvac.engine import parameter_groups
from gradvac.engine.parameter_names import (
    adapted_module,
    is_embedding,
    is_norm,
    layer_of,
    sublayers,
)
from gradvac.geometry.kinds import parameter_kind

transformers = pytest.importorskip("transformers")


def seq2seq(kind: str, **more: object) -> nn.Module:
    config = {"vocab_size": 20, "d_model": 8, "encoder_layers": 2, "decoder_layers": 2}
    config |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config |= {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "pad_token_id": 1, **more}
    config |= {"bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = {"Bart": "BartForConditionalGeneration", "M2M100": "M2M100ForConditionalGeneration"}
    made = getattr(transformers, f"{kind}Config")(**config)
    return getattr(transformers, model.get(kind, "MarianMTModel"))(made)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def bert(kind: str) -> nn.Module:
    config = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    made = getattr(transformers, f"{kind}Config")(**config)
    return getattr(transformers, f"{kind}ForTokenClassification")(made)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "BART": lambda: seq2seq("Bart"),
    "M2M, NLLB": lambda: seq2seq("M2M100"),
    "Marian": lambda: seq2seq("Marian"),
    "T5": t5,
    "Llama": llama,
    "BERT": lambda: bert("Bert"),
    "XLM-R": lambda: bert("XLMRoberta"),
    "nn.Transformer": lambda: nn.Transformer(8, 2, 2, 2, 8, batch_first=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_names_tell_what_the_modules_are(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    seen = {"embedding": 0, "norm": 0, "other": 0}
    for path, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            full = f"{path}.{own}"
            embeds = isinstance(module, nn.Embedding) or path == "lm_head"
            norm = "Norm" in type(module).__name__
            assert is_norm(full) == norm, full
            if not norm:  # that of the embeddings is named after both
                assert is_embedding(full) == embeds, full
                assert (parameter_kind(full) == "embedding") == embeds, full
            assert parameter_kind(full).endswith("norm") == norm, full
            seen["embedding" if embeds else "norm" if norm else "other"] += 1
    assert seen["norm"] and seen["other"]
    assert bool(seen["embedding"]) == (name != "nn.Transformer")


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_are_those_of_the_model(name: str) -> None:
    model = MODELS[name]()
    sides = 1 if name in ("Llama", "BERT", "XLM-R") else 2
    layers = {layer_of(path) for path, _ in model.named_parameters()} - {None}
    assert len(layers) == 2 * sides


@pytest.mark.parametrize("name", ["final_logits_bias", "model.shared", "relative_attention_bias"])
def test_groups_and_kinds_agree_outside_the_layers(name: str) -> None:
    named = [(n, nn.Parameter(torch.zeros(2, 2))) for n in (name, "encoder.layers.0.fc1.weight")]
    assert [group.name for group in parameter_groups(named)] == ["embedding", "encoder.layers.0"]
    assert parameter_kind(name) == "embedding"


PARTS = {  # of what the modules of a layer are called in these models
    "self_attention": "self_attn attention SelfAttention attn".split(),
    "cross_attention": "encoder_attn EncDecAttention multihead_attn crossattention".split(),
    "feed_forward": "mlp intermediate output fc1 fc2 linear1 linear2 DenseReluDense".split(),
}
NORMS = {  # of what they are in front of, or behind in models that normalise outputs
    "self_attention": "input_layernorm self_attn_layer_norm ln_1 norm1".split(),
    "cross_attention": "encoder_attn_layer_norm ln_cross_attn".split(),
    "feed_forward": "post_attention_layernorm final_layer_norm ln_2 norm3".split(),
}


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=9, add_cross_attention=True
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("name", [*MODELS, "GPT-2"])
def test_the_parts_of_a_layer_are_its_modules(name: str) -> None:
    model = MODELS[name]() if name in MODELS else gpt2()
    group_of = {n: g.name for g in parameter_groups(model, "all_module") for n in g.names}
    seen = set()
    for path, group in group_of.items():
        layer = layer_of(path)
        if layer is None:
            assert group in ("embedding", "head") or group.endswith(".feed_forward")  # a last norm
            continue
        assert group.startswith(layer + ".")
        inside = path.removeprefix(layer + ".").split(".")
        if name == "T5":  # layer.0.SelfAttention.q, layer.0.layer_norm
            sides = ["self_attention", "cross_attention", "feed_forward"]
            sides = sides if "decoder" in path else sides[::2]
            expected = sides[int(inside[1])]
        elif name == "nn.Transformer" and inside[0] == "norm2":
            expected = "cross_attention" if "decoder" in path else "feed_forward"
        else:
            known = {word: part for part, words in (PARTS | NORMS).items() for word in words}
            known |= {word: part for part, words in PARTS.items() for word in words}
            expected = known[inside[0]]
        assert group == f"{layer}.{expected}", path
        seen.add(expected)
    decoder = name not in ("Llama", "BERT", "XLM-R")
    assert seen == {"self_attention", "feed_forward"} | ({"cross_attention"} if decoder else set())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # Gemma 2: the norm behind the attention is called as Llama's before the feed-forward
        (["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm"], "aaf"),
        (["post_attention_layernorm", "post_feedforward_layernorm"], "af"),
        (["self_attn.q_norm", "mlp.norm"], "af"),
        (["mixer.in_proj", "linear_attn.conv1d", "block_sparse_moe.gate", "router"], "maff"),
    ],
)  # fmt: skip
def test_parts_by_name(names: list[str], expected: str) -> None:
    words = {"a": "self_attention", "f": "feed_forward", "m": "mixer"}
    found = sublayers([f"layers.3.{name}.weight" for name in names], "layers.3")
    assert list(found.values()) == [words[letter] for letter in expected]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # of PEFT 0.21
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"init_lora_weights": "olora"}])
def test_an_adapter_is_one_group(options: dict[str, object]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules="all-linear", task_type="CAUSAL_LM", modules_to_save=["lm_head"],
        trainable_token_indices=[1, 2], **options,
    )  # fmt: skip
    model = peft.get_peft_model(llama(), config)
    groups = parameter_groups(model, "all_adapter")
    adapted = [name for name, m in model.named_modules() if hasattr(m, "lora_A")]
    found = {g.name: g.names for g in groups}
    assert len(adapted) == 2 * 7
    for name in adapted:
        kept = {n.removeprefix(name + ".").split(".")[0] for n in found.pop(name)}
        assert kept == {"lora_A", "lora_B"} | (
            {"lora_magnitude_vector"} if options.get("use_dora") else set()
        )
    assert all("lm_head" in name or "embed_tokens" in name for name in found)
    by_module = [g.name for g in parameter_groups(model, "all_module")]
    assert by_module[1:5] == [
        f"base_model.model.model.layers.{n}.{part}"
        for n in (0, 1)
        for part in ("self_attention", "feed_forward")
    ]


def test_the_parameters_of_every_method_of_peft_are_known() -> None:
    peft = pytest.importorskip("peft")
    from peft.tuners import tuners_utils

    layers, waiting = set(), [tuners_utils.BaseTunerLayer]
    while waiting:
        kinds = waiting.pop().__subclasses__()
        layers.update(kinds)
        waiting += kinds
    names = {name for kind in layers for name in kind.adapter_layer_names}
    assert len(names) > 40 and peft
    assert [n for n in sorted(names) if adapted_module(f"h.0.attn.{n}.default") != "h.0.attn"] == []
