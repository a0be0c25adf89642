"""The comparison of tools/exactness sees what is wrong, and its table says what was tried."""

import json

import pytest
import torch
from torch import nn

import gradvac
from tools.exactness import __main__ as command
from tools.exactness import models, operators, run
from tools.exactness.compare import WAYS, examine, worst
from tools.exactness.reference import Case, Unfit
from tools.exactness.report import Row, page, read_json
from tools.exactness.run import TooLong, seconds

TASKS = list("bacab")


def case(*between, losses=lambda y: y.square().sum(-1)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), *between).double()
    ids = torch.tensor([3, 1, 4, 1, 5])
    return Case(model, lambda m: losses(m(ids)), TASKS)


def outcome(case, *ways):
    name, found = worst(examine(case, ways or WAYS[:2])[0])
    return name, found.outcome, found.reason


def test_a_model_that_splits_is_exact_and_one_that_mixes_falls_back_with_the_reason():
    assert outcome(case())[1:] == ("exact", "")
    _, found, reason = outcome(case(nn.BatchNorm1d(4)))
    assert found == "falls back" and "batch normalisation" in reason


class Mutated(gradvac.Engine):
    """An engine that is right, but for what `change` does to what it leaves."""

    change = None

    def backward(self, *args, **kwargs):
        report = super().backward(*args, **kwargs)
        type(self).change(self, report)
        return report


def a_gradient(engine, report):
    engine.model[1].bias.grad[0] *= 1 + 1e-6


def no_gradient(engine, report):
    engine.model[1].bias.grad = None


def a_gram(engine, report):
    report.gram[-1, 0, 1] += 1e-6 * report.gram[-1].max()


def a_crash(engine, report):
    raise ValueError("strange")


def an_error(engine, report):
    raise gradvac.GradientError("not like this")


def a_second_step(engine, report):
    if report.step:
        a_gradient(engine, report)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (a_gradient, ("default", "WRONG", "gradient of 1.bias")),
        (no_gradient, ("default", "WRONG", "gradient of 1.bias")),
        (a_gram, ("default", "WRONG", "Gram matrix of 1.weight")),
        (a_crash, ("default", "CRASH", "ValueError: strange")),
        (an_error, ("default", "refused", "GradientError: not like this")),
        (a_second_step, ("second step", "WRONG", "gradient of 1.bias")),
    ],
)
def test_what_is_wrong_is_seen(change, expected, monkeypatch):
    monkeypatch.setattr(Mutated, "change", staticmethod(change))
    monkeypatch.setattr(gradvac, "Engine", Mutated)
    assert outcome(case(), WAYS[0], WAYS[2]) == expected


def test_weights_are_those_that_the_exact_gram_matrix_gives(monkeypatch):
    """PCGrad's gradient is compared with its own weights, not with those the engine found."""

    class Joint(gradvac.Engine):
        def __init__(self, model, method, *args, **kwargs):
            super().__init__(model, gradvac.Joint(), *args, **kwargs)

    monkeypatch.setattr(gradvac, "Engine", Joint)
    assert outcome(case(), WAYS[1])[:2] == ("PCGrad", "WRONG")


def test_what_plain_torch_does_not_run_is_not_a_row():
    for losses, message in [
        (lambda y: y.sum(), "not one for each sample"),
        (lambda y: y.sum(-1) / 0, "not finite"),
        (lambda y: y @ y, "mat1 and mat2"),
    ]:
        with pytest.raises(Unfit, match=message):
            examine(case(losses=losses))


def test_casts_to_float32_are_noted_and_allowed_for():
    narrow = lambda y: y.float().square().sum(-1).double()
    each, casts = examine(case(losses=narrow), WAYS[:1])
    assert casts and worst(each)[1].outcome == "exact"
    assert not examine(case(), WAYS[:1])[1]


def test_a_row_may_not_take_for_ever():
    with pytest.raises(TooLong, match="longer than 1 s"), seconds(1):
        while True:
            pass


def test_every_model_and_operator_has_a_row_of_its_own():
    pytest.importorskip("peft")
    for kind, least in (("models", 300), ("adapters", 30), ("operators", 650)):
        names = [name for name, _ in run.rows_of(kind, quick=True)]
        assert len(names) == len(set(names)) > least


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "a/b"])
def test_parts_are_checked(text, capsys):
    with pytest.raises(SystemExit):
        command.main(["models", "--part", text])
    assert f"a part is given as 2/12, the second of twelve; not '{text}'" in capsys.readouterr().err


def test_the_command_writes_json_and_a_page(tmp_path, capsys):
    file, document = tmp_path / "rows.json", tmp_path / "page.md"
    flags = ["--quick", "--only", "^(BertForMaskedLM|MixtralForCausalLM|sin|bmm|item)$"]
    command.main([*flags, "--json", str(file), "--page", str(document)])
    told = capsys.readouterr().out
    used, rows = read_json(file)
    assert used["torch"] == torch.__version__ and used["transformers"]
    found = {row.name: row for row in rows}
    experts = [f"MixtralForCausalLM, {way}" for way in models.EXPERTS]
    assert list(found) == [*experts, "BertForMaskedLM", "item", "bmm", "sin"]
    assert found["BertForMaskedLM"].outcome == "exact"
    assert "no gradient" in found["item"].reason
    assert sum(found["sin"].counts.values()) > 3
    assert json.loads(file.read_text())["rows"][0]["kind"] == "decoder"
    text = document.read_text()
    assert text == page(rows, used)
    for name in found:
        assert name in text and name in told
    again = tmp_path / "again.md"
    command.main(["--read", str(file), "--page", str(again)])
    assert again.read_text() == text


def test_the_page_marks_what_is_wrong():
    rows = [
        Row("A", "decoder", "WRONG", "gradient of x", 0.5, "default", {"WRONG": 6}),
        Row("B", "vision", "not tested", "too | large"),
        Row("f", "operator", "CRASH", "ValueError: no", 0.0, "sample 0", {"CRASH": 1, "exact": 2}),
    ]
    text = page(rows, {"torch": "2"})
    assert "| A | decoder | **WRONG** | 5e-01 | gradient of x [default] |" in text
    assert "| `f` | 2 |  |  | **CRASH** [sample 0] ValueError: no |" in text
    assert "| B | too \\| large |" in text and "2 tested: 1 WRONG, 1 not tested." in text


def test_well_known_models_stand_first_with_the_worst_way_of_computing_experts():
    rows = [
        Row("MixtralForCausalLM, eager", "decoder", "exact", error=1e-15),
        Row("MixtralForCausalLM, grouped_mm", "decoder", "falls back", "it mixes"),
        Row("GPT2LMHeadModel", "decoder", "exact", error=2e-16),
        Row("DoRA, GPT2LMHeadModel", "adapter", "exact", error=3e-16),
    ]
    text = page(rows, {"torch": "2"})
    assert "| GPT2LMHeadModel | decoder | one backward pass |  | 2e-16 |  |" in text
    experts = "| MixtralForCausalLM | decoder | falls back | eager, grouped_mm | 0e+00 | it mixes |"
    assert experts in text
    assert "1 tested: 1 exact." in text and "| DoRA, GPT2LMHeadModel | exact | 3e-16 |  |" in text


def test_a_model_that_cannot_be_built_is_listed():
    def case(_):
        raise OSError("no such thing")

    (row,) = models.rows(models.Architecture("A", "vision", case), WAYS)
    assert (row.outcome, row.reason) == ("not tested", "OSError: no such thing")


def test_roles_reach_every_tensor_argument():
    op = next(op for op in operators.operators() if operators.title(op) == "bmm")
    sample = operators.samples_of(op, 1)[0]
    found = list(operators.roles([sample.input, *sample.args]))
    assert {role.parameter for role in found} == {None, 0, 1}
    assert {role.dim for role in found} == {0, 1}


def test_rows_are_kept_as_they_come_and_a_hang_is_a_row(monkeypatch):
    def hangs():
        yield Row("b, one", "decoder", "exact")
        while True:
            pass

    tasks = [("a", lambda: [Row("a", "decoder", "exact")]), ("b", hangs), ("other", hangs)]
    monkeypatch.setattr(run, "rows_of", lambda kind, quick: tasks)
    monkeypatch.setattr(run, "LIMIT", 1)
    kept, told = [], []
    rows = run.run("models", only="^.$", tell=told.append, keep=lambda rows: kept.append(len(rows)))
    assert [row.name for row in rows] == ["a", "b, one", "b"] and kept == [1, 3]
    assert rows[-1].outcome == "not tested" and "longer than 1 s" in rows[-1].reason
    assert len(told) == 3
