"""`gradvac geometry`, figures and the report on runs of tagging."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RunError
from gradvac.experiment.figures import write_figures
from gradvac.experiment.report import write_report
from gradvac.experiment.tagging.evaluate import evaluate_tagging
from gradvac.experiment.training.kind import kind_of_run
from gradvac.experiment.view.geometry import subjects_of
from gradvac.experiment.view.numbers import findings
from gradvac.experiment.view.run_view import load_runs
from gradvac.geometry.record import GramRecord
from tests.build import QUIET, trained, write_recipe
from tests.tagging.helpers import LABELS, make_toy, tagged_rows, write_two_column
from tools.evidence.collect import geometry

transformers = pytest.importorskip("transformers")
CODES = ["de", "en", "fr", "hi"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One run with GradVac of four toy languages, one of them in another script."""
    folder = tmp_path_factory.mktemp("geometry")
    tree = make_toy(folder, n=8)
    languages = tree["data"]["languages"]
    for code in ("en", "hi"):
        for part, count in (("train", 6), ("valid", 5), ("test", 4)):
            write_two_column(folder / f"{code}.{part}", rows_of(code, count))
        files = {part: [f"{code}.{part}"] for part in ("train", "valid", "test")}
        languages[code] = {"format": "two-column", **files}
    changes = ["method.name=gradvac", "method.record_every=1", "training.keep=2"]
    changes += ["batches.sentences=8", "training.epochs=4"]
    write_recipe(folder, tree)
    out = trained(folder, folder / "run", changes)
    evaluate_tagging(out)
    return out


def rows_of(code: str, count: int) -> list[list[tuple[str, str]]]:
    """Sentences of a toy language, those of hi in Devanagari."""
    if code != "hi":
        return tagged_rows("" if code == "de" else "u", count)
    other = lambda word: "".join(chr(ord(c) - 97 + 0x915) if c.isalpha() else c for c in word)
    return [[(other(word), tag) for word, tag in row] for row in tagged_rows("", count)]


def gradients_by_hand(step: int, run: Path) -> np.ndarray:
    """Cosines between languages of the whole model, one sentence at a time, no padding."""
    auto = transformers.AutoModelForTokenClassification
    model = auto.from_pretrained(run / "best").double().eval()
    state = load_tensors(run, step)
    model.load_state_dict({name: value.double() for name, value in state.items()})
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "best")
    vectors = []
    for code in CODES:
        losses = []
        for row in rows_of(code, 6 if code in ("de", "fr") else 5):
            found = tokenizer([w for w, _ in row], is_split_into_words=True)
            words = found.word_ids(0)
            firsts = [1 + words.index(n) for n in range(len(row))]
            gold = torch.tensor([LABELS.index(tag) for _, tag in row])
            ids = [tokenizer.cls_token_id, *found["input_ids"], tokenizer.sep_token_id]
            logits = model(input_ids=torch.tensor([ids])).logits[0, firsts]
            losses.append(F.cross_entropy(logits, gold, reduction="none"))
        grads = torch.autograd.grad(torch.cat(losses).mean(), list(model.parameters()))
        vectors.append(torch.cat([g.flatten() for g in grads]))
    unit = F.normalize(torch.stack(vectors), dim=1)
    return (unit @ unit.T).numpy()


def load_tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def test_the_cosines_are_those_of_gradients_taken_by_hand(run, tmp_path):
    out = kind_of_run(run).measure(
        run, tmp_path / "m", None, granularity="whole_model", console=QUIET
    )
    frames = list(GramRecord(out))
    assert len(frames) == 2 and frames[0].tasks == tuple(CODES)
    for frame in frames:
        norms = np.sqrt(np.diagonal(frame.gram[0]))
        found = frame.gram[0] / np.outer(norms, norms)
        assert found == pytest.approx(gradients_by_hand(frame.step, run), abs=1e-4)


def test_the_verb_figures_and_report_show_languages(run, tmp_path):
    said = CliRunner().invoke(app, ["geometry", str(run), "--strings", "4", "--curvature", "1"])
    assert said.exit_code == 0, said.output
    assert "2 checkpoints, 4 languages, 4 sentences each (validation text)" in said.output
    measured = json.loads((run / "geometry" / "measured" / "measured.json").read_text())
    assert (measured["multiway"], measured["strings"], measured["tasks"]) == (False, 4, CODES)
    assert measured["scripts"]["de"] == "LATIN"
    lines = (run / "geometry" / "measured" / "curvature.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == {f.step for f in GramRecord(
        run / "geometry" / "measured"
    )}  # fmt: skip
    (subject,) = subjects_of(load_runs([run]))
    found, _ = findings(subject)
    asked = {f.question for f in found}
    assert {f.side for f in found} == {"languages"}
    assert {"same family", "F1 of the language", "accuracy of the language"} <= asked
    names = {f.name for f in write_figures([run], tmp_path / "figures", lambda text: None)}
    assert "gradvac-fig-08-whole-model-languages" in names
    assert "gradvac-fig-04b-layers" in names and "gradvac-fig-02a-both-sides" not in names
    page = write_report(tmp_path / "r.html", [run], title="t", start=None, notes=[])
    text = page.read_text(encoding="utf-8")
    assert re.search(r"Mean cosine of two tasks, whole model\. languages: [−0-9]", text)
    assert "F1 of the language" in text
    assert "its encoder" in text and "random parameters" not in text
    assert "F1 of every direction." in text and "chrF++" not in text
    scores = json.loads((run / "scores.json").read_text())["directions"]
    for code in CODES:
        rows = [row.split("</tr>")[0] for row in text.split(f'<th scope="row">{code}</th>')[1:]]
        for metric in ("f1", "accuracy"):  # a table each
            assert any(f">{scores[code][metric]:.1f}<" in row for row in rows)


def test_evidence_keeps_the_means_of_languages(run):
    below = Path("geometry", "kept")
    kind_of_run(run).measure(run, run / below, None, strings=3, console=QUIET)
    kept = geometry(run, below)["sides"]["languages"]
    assert sorted(kept["tasks"]) == CODES and kept["parts"].keys() == {"whole_model", "encoder"}
    apart, means = ~np.eye(4, dtype=bool), []
    for frame in GramRecord(run / below):
        whole = frame.gram.sum(0)
        norms = np.sqrt(np.diagonal(whole))
        means.append((whole / np.outer(norms, norms))[apart].mean())
    assert len(means) == 2 and kept["parts"]["whole_model"] == pytest.approx(np.mean(means))


def test_a_recorded_run_knows_scripts_from_its_words(run, tmp_path):
    """Before anything is measured, the record of training has the same questions."""
    folder = tmp_path / "run"
    for part in ("recipe.yaml", "tasks.json", "scores.json", "metrics.jsonl"):
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).write_bytes((run / part).read_bytes())
    for part in ("geometry/frames.jsonl", "geometry/gram.bin", "data/test.jsonl"):
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).write_bytes((run / part).read_bytes())
    (subject,) = subjects_of(load_runs([folder]))
    assert subject.geometry is not None and subject.geometry.measured is None
    found = {f.question: f for f in findings(subject)[0] if f.part == "whole_model"}
    assert found["same script"].n == 6
    assert not np.isnan(found["same script"].r)  # hi is in another script than the rest


def test_parallel_text_and_missing_text_are_refused(run, tmp_path):
    with pytest.raises(RunError, match=r"--rows: found .*which has no tags"):
        kind_of_run(run).measure(run, tmp_path, Path("rows.tsv"), console=QUIET)
    with pytest.raises(RunError, match=r"--directions: found fr-en; this run has languages"):
        kind_of_run(run).measure(run, tmp_path, None, ["fr-en"], console=QUIET)
    tree = make_toy(tmp_path, n=4)
    del tree["data"]["languages"]["fr"]["valid"]
    tree["training"] |= {"epochs": 1, "metric": "nll"}
    write_recipe(tmp_path, tree)
    out = trained(tmp_path, tmp_path / "run")
    with pytest.raises(RunError, match=r"no validation text to measure on for fr; data\.lang"):
        kind_of_run(out).measure(out, None, None, console=QUIET)
