"""Rows of what was tried: as JSON, and as the page docs/exactness.md."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OUTCOMES = ("exact", "falls back", "refused", "WRONG", "CRASH", "not tested")
BAD = ("WRONG", "CRASH")


@dataclass
class Row:
    """What an engine did with a model or an operator.

    Attributes:
        kind: "operator", or what sort of model.
        outcome: the worst of all that was tried, one of ``OUTCOMES``.
        reason: why it is not exact.
        error: the largest relative error.
        where: in which of the things tried, for operators also with which arguments.
        counts: how many of the things tried had which outcome.
        ways: the outcome of each way to use the engine; of an operator, of how many of each.
        float32: whether numbers of less than float64 took part.
    """

    name: str
    kind: str
    outcome: str
    reason: str = ""
    error: float = 0.0
    where: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    ways: dict[str, Any] = field(default_factory=dict)
    float32: bool = False

    @property
    def line(self) -> str:
        told = " ".join(f"{n} {outcome}," for outcome, n in self.counts.items()).rstrip(",")
        why = f": {self.reason}" if self.reason else ""
        where = f" [{self.where}]" if self.outcome in BAD else ""
        return f"{self.name} {self.outcome} ({told}; {self.error:.0e}){why}{where}"


def versions() -> dict[str, str]:
    """Return the versions that the rows depend on."""
    found = {"python": platform.python_version()}
    for name in ("gradvac", "torch", "transformers", "peft", "torchvision"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_json(path: Path, rows: Sequence[Row]) -> None:
    content = {"versions": versions(), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> tuple[dict[str, str], list[Row]]:
    content = json.loads(path.read_text())
    return content["versions"], [Row(**row) for row in content["rows"]]


def page(rows: Sequence[Row], used: dict[str, str]) -> str:
    """Return the page of the documentation."""
    adapters = [row for row in rows if row.kind == "adapter"]
    models = [row for row in rows if row.kind not in ("operator", "adapter")]
    operators = [row for row in rows if row.kind == "operator"]
    kinds = list(dict.fromkeys(row.kind for row in models))
    models.sort(key=lambda row: (kinds.index(row.kind), row.name.lower()))
    operators.sort(key=lambda row: row.name)
    named = ", ".join(f"{name} {number}" for name, number in used.items())
    parts = [INTRODUCTION.format(versions=named)]
    if glance := _glance(models):
        parts.append(f"## Language models at a glance\n\n{GLANCE}\n\n{glance}")
    if adapters:
        parts.append(
            f"## Adapters\n\n{_summary(adapters)}\n\n{ADAPTERS}\n\n{_models(adapters, False)}"
        )
    if models:
        parts.append(f"## Models\n\n{_summary(models)}\n\n{MODELS}\n\n{_models(models)}")
    if operators:
        parts.append(
            f"## Operators\n\n{_summary(operators)}\n\n{OPERATORS}\n\n{_operators(operators)}"
        )
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
# Exactness: models, adapters and operators tested

Models, adapters and operators that the engine was not written for. Each was compared in float64
with separate backward passes of plain PyTorch on a copy of the model. This page was written by

    python -m tools.exactness --json exactness.json --page docs/exactness.md

`--quick` tests less of each, `--only PATTERN` some of them, `--part 2/12` every twelfth, and
`--read FILES --page FILE` joins parts.

With {versions}.

| outcome | |
|---|---|
| exact | the task gradients came from one backward pass and are correct |
| falls back | the engine logged why and ran a backward pass per task; the gradients are correct |
| refused | an error says why; nothing was trained |
| WRONG | a gradient or a Gram matrix differs, and there was no message |
| CRASH | an error that is not one of gradvac's |
| not tested | plain PyTorch does not run it either, or no small model of it is known |

Correct means: no entry of a group's Gram matrix, and no parameter's combined gradient, differs from
the separate passes by more than 1e-8 of its size, or of a thousandth of the whole gradient's if it
is smaller than that. If a model computes something in float32 (many norms do), the bound is 1e-3
instead of 1e-8, and the row says so."""

GLANCE = """\
How the gradients of well-known language models are split. Of the models with experts every way of
computing these was tested, and the worst is shown. All models are in the [table](#models)."""

# In the order of the page; those that transformers does not have are left out.
LANGUAGE_MODELS = """
    Llama Llama4Text Mistral Ministral Qwen2 Qwen3 Qwen3_5 Gemma Gemma2 Gemma3 Gemma4 Phi
    Phi3 Olmo2 Olmo3 SmolLM3 Granite Cohere2 StableLm Starcoder2 Falcon GPT2 GPTNeo GPTNeoX
    GPTJ OPT Bloom Glm4 Exaone4 Nemotron Helium Mamba Mamba2 FalconMamba FalconH1 Bamba
    Zamba2 RecurrentGemma Lfm2 Mixtral Qwen2Moe Qwen3Moe Qwen3Next DeepseekV2 DeepseekV3
    GptOss Olmoe Phimoe GraniteMoe Jamba Dbrx Glm4Moe Ernie4_5_Moe Bert Roberta XLMRoberta
    XLMRobertaXL DebertaV2 Electra Albert DistilBert ModernBert MPNet Funnel T5 MT5 UMT5
    LongT5 SwitchTransformers Bart MBart Marian M2M100 NllbMoe Pegasus PegasusX ProphetNet
""".split()
_ENDINGS = "ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "MTModel"

ADAPTERS = """\
Adapters of PEFT on tiny models, each trained in the ways of the [models](#models), and with one
backward pass per task. OPT and GPT-2 compute in float64, except that two adapters use a Fourier
transform of float32; the other models normalise in float32, which limits how small an error can
be."""

MODELS = """\
Tiny configurations and random weights of every text, vision and audio model that transformers
has, each with six samples of three tasks in mixed order, dropout on. Models with experts are tested
with each way of computing them; `grouped_mm` runs in float32. Each model runs with unequal weights
by matrix, with PCGrad on the whole model, a second time, after a first batch of one task, with a
budget of 1,000 bytes and with two passes; the row shows the worst of these, and the largest error.
Models of torchvision are tested if it is installed, in training and in eval mode."""

OPERATORS = """\
The operators of torch's own list of operators with sample inputs
(`torch.testing._internal.common_methods_invocations.op_db`). Several small models are made for each
sample input: one argument holds samples, along its first or a middle dimension, multiplied by a
parameter before; each other argument is a parameter, or a parameter expanded to the batch; the
samples have no gradient; all arguments hold samples; or the operator gets only parameters. The
losses are taken along each dimension of the result that is as long as the batch, so some of these
models mix samples; for these, falling back is correct. The row counts the models and shows the
worst."""


def _summary(rows: Sequence[Row]) -> str:
    counts = Counter(row.outcome for row in rows)
    told = [f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome]]
    return f"{len(rows)} tested: {', '.join(told)}."


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


_MADE_BY = re.compile(r"^.* it takes a tensor made by '\w+': ")


def _cell(text: str, length: int = 160) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= length else text[: length - 3] + "..."


def _glance(rows: Sequence[Row]) -> str:
    """How well-known language models are split, one line for each; empty if none was tested."""
    lines = []
    for name in LANGUAGE_MODELS:
        own = [row for row in rows if row.name.partition(",")[0] in {name + e for e in _ENDINGS}]
        own = [row for row in own if row.outcome != "not tested"]
        if not own:
            continue
        row = max(own, key=lambda row: (OUTCOMES.index(row.outcome), row.error))
        ways = ", ".join(row.name.partition(", ")[2] for row in own).strip(", ")
        how = "one backward pass" if row.outcome == "exact" else row.outcome
        error = f"{row.error:.0e}" + (" (float32)" if row.float32 else "")
        lines.append(
            [own[0].name.partition(",")[0], own[0].kind, how, ways, error, _cell(row.reason)]
        )
    return _table(["model", "", "gradients", "experts", "error", "why"], lines) if lines else ""


def _models(rows: Sequence[Row], kinds: bool = True) -> str:
    lines = [
        [
            row.name,
            *([row.kind] if kinds else []),
            f"**{row.outcome}**" if row.outcome in BAD else row.outcome,
            f"{row.error:.0e}" + (" (float32)" if row.float32 else ""),
            _cell(row.reason + (f" [{row.where}]" if row.outcome in BAD else "")),
        ]
        for row in rows
        if row.outcome != "not tested"
    ]
    head = ["model", ""] if kinds else ["adapter, model"]
    table = _table([*head, "outcome", "error", "why"], lines)
    rest = [[row.name, _cell(row.reason)] for row in rows if row.outcome == "not tested"]
    return table + (f"\n\n{_table(['not tested', 'why'], rest)}" if rest else "")


def _operators(rows: Sequence[Row]) -> str:
    exact = [row for row in rows if row.outcome == "exact"]
    named = ", ".join(f"`{row.name}`" for row in exact)
    lines = [
        [
            f"`{row.name}`",
            *(str(row.counts.get(outcome, "")) for outcome in OUTCOMES[:3]),
            _cell(
                f"**{row.outcome}** [{row.where}] {row.reason}"
                if row.outcome in BAD
                else _MADE_BY.sub("", row.reason)
            ),
        ]
        for row in rows
        if row.outcome not in ("exact", "not tested")
    ]
    table = f"Exact in all models: {named}.\n\n" if named else ""
    table += _table(["operator", *OUTCOMES[:3], "why not exact"], lines)
    without: dict[str, list[str]] = {}
    for row in rows:
        if row.outcome == "not tested":
            without.setdefault(row.reason, []).append(row.name)
    rest = [[_cell(why), ", ".join(f"`{n}`" for n in names)] for why, names in without.items()]
    return table + (f"\n\n{_table(['not tested because', 'operators'], rest)}" if rest else "")
