"""Router losses by samples: their parts add up, and each flows through the tokens of its sample."""

import pytest
import torch

from gradvac import Engine, GradientError, Joint
from gradvac.engine import SinglePassEngine
from tests.engine.partition import flat, found_by

pytest.importorskip("transformers")
import transformers

from gradvac.integrations.router_losses import router_losses
from tools.exactness.tiny import built, configured

TASKS = ["b", "a", "c", "b"]
DECODERS = ["MixtralForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM", "OlmoeForCausalLM"]
PAIRS = ["SwitchTransformersForConditionalGeneration", "NllbMoeForConditionalGeneration"]


def case(name):
    kind = getattr(transformers, name)
    config = configured(kind.config_class, {"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.3})
    config.router_aux_loss_coef = 0.5
    model = built(kind, config).eval()  # no dropout and no noise in the router
    if name in DECODERS:
        model.set_experts_implementation("eager")  # grouped_mm takes no float64
    ids = torch.randint(4, 20, (4, 5), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    batch["attention_mask"][1, 3:] = 0
    if name in PAIRS:
        batch["decoder_input_ids"] = ids.roll(1, 1)
    return model, batch


@pytest.mark.parametrize("name", [*DECODERS, *PAIRS])
def test_the_parts_add_up_to_the_models_own_loss(name):
    model, batch = case(name)
    out = model(**batch, output_router_logits=True)
    without = model(**batch, output_router_logits=False).loss
    parts = router_losses(model, out, batch["attention_mask"])
    parameters = list(model.parameters())
    assert parts.shape == (4,)
    own = (out.loss - without).to(parts)
    torch.testing.assert_close(parts.sum(), own, rtol=1e-4, atol=1e-6)
    whole = torch.autograd.grad(out.loss - without, parameters, allow_unused=True)
    again = model(**batch, output_router_logits=True)
    found = torch.autograd.grad(
        router_losses(model, again, batch["attention_mask"]).sum(), parameters, allow_unused=True
    )
    for f, w in zip(found, whole, strict=True):
        if w is not None:
            f = torch.zeros_like(w) if f is None else f
            torch.testing.assert_close(f, w, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [*DECODERS, PAIRS[0]])
def test_they_are_split_in_one_backward_pass(name):
    model, batch = case(name)

    def losses():
        out = model(**batch, output_router_logits=True)
        return out.logits.square().mean((1, 2)) + router_losses(
            model, out, batch["attention_mask"]
        ), None

    found = found_by(SinglePassEngine, model, losses, TASKS, steps=2)
    for task in found:
        loss = losses()[0]
        parameters = [p for g in Engine(model, Joint()).groups for p in g.parameters]
        own = loss[torch.tensor([t == task for t in TASKS])].sum()
        wanted = torch.autograd.grad(own, parameters, allow_unused=True)
        wanted = flat(wanted, parameters)
        error = (torch.cat(found[task]) - wanted).norm() / wanted.norm()
        assert error < 1e-6  # routers compute in float32


def test_a_part_flows_through_the_tokens_of_its_sample_alone():
    model, batch = case("MixtralForCausalLM")
    out = model(**batch, output_router_logits=True)
    parts = router_losses(model, out, batch["attention_mask"])
    for sample in range(4):
        gradients = torch.autograd.grad(parts[sample], out.router_logits[-1], retain_graph=True)
        rows = gradients[0].view(4, -1).abs().sum(1).nonzero().flatten().tolist()
        assert rows == [sample]


def test_a_model_without_router_losses_is_an_error():
    model, batch = case("MixtralForCausalLM")
    with pytest.raises(GradientError, match="MixtralForCausalLM returned no router logits"):
        router_losses(model, model(**batch))


def test_another_mask_is_an_error():
    model, batch = case("MixtralForCausalLM")
    out = model(**batch, output_router_logits=True)
    with pytest.raises(GradientError, match="give the attention masks that the model was given"):
        router_losses(model, out)
