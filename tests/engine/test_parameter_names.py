"""Names of parameters against the modules that real models keep them in."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from gradvac.engine import parameter_groups
from gradvac.engine.parameter_names import is_embedding, is_norm, layer_of
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
