"""Figures: their numbers recomputed from the raw Gram matrices, and what is said to be missing."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.cluster.hierarchy import average
from scipy.spatial.distance import squareform
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RunError
from gradvac.experiment.figures import CATALOGUE
from gradvac.experiment.figures.write import draw_all
from gradvac.experiment.training.measuring import Measurement
from gradvac.experiment.view.geometry import Missing, subjects_of
from gradvac.experiment.view.run_view import load_runs
from gradvac.geometry.record import Frame, GramRecord
from tests.experiment.synthetic import PAIRS, make_run, side, write_json, write_lines

BOTH = ("fr-en", "es-en", "hi-en", "sw-en", "en-fr", "en-es", "en-hi", "en-sw")
SHAPES = {
    "embedding.weight": [9, 4],
    "encoder.layers.0.self_attention.q.weight": [4, 4],
    "encoder.layers.0.self_attention.q.bias": [4],
    "encoder.layers.0.feed_forward.up.weight": [8, 4],
    "encoder.norm.weight": [4],
    "decoder.layers.0.cross_attention.q.weight": [4, 4],
    "decoder.norm.weight": [4],
}


def measure(
    run: Path, tasks: tuple[str, ...], steps: tuple[int, ...] = (20, 10, 30), seed: int = 0
) -> None:
    """A measurement of invented gradients; the steps are not in order."""
    folder = run / "geometry" / "measured"
    record = GramRecord(folder)
    for step in steps:
        random = np.random.default_rng([seed, step])
        grams = []
        for shape in SHAPES.values():
            common = random.normal(size=int(np.prod(shape)))
            j = random.normal(size=(len(tasks), common.size)) + 0.5 * common
            grams.append(j @ j.T)
        none = (0,) * len(SHAPES)
        weights = np.ones((len(SHAPES), len(tasks)))
        frame = Frame(step, tasks, tuple(SHAPES), np.array(grams), weights, none, none, none)
        record.append(frame)
    said = Measurement(
        list(tasks), "parameter", 64, "validation text", True, "f", 0.1, SHAPES, {"en": "LATIN"}, 4
    )
    write_json(folder / "measured.json", dataclasses.asdict(said))
    lines = [
        {
            "step": step,
            "group": group,
            "value": step * 0.1 * n + seed,
            "residual": 0.0,
            "products": 9,
        }
        for step in steps
        for n, group in enumerate(("high", "low", "sum"), 1)
    ]
    write_lines(folder / "curvature.jsonl", lines)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "gradvac", "gradvac", BOTH)
    measure(folder, BOTH)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in log:
        if line["kind"] == "train":
            line["task_nll"] = {t: line["nll"] + n for n, t in enumerate(BOTH)}
    write_lines(folder / "metrics.jsonl", log)
    return folder


@pytest.fixture(scope="module")
def drawn(run: Path):
    return draw_all(subjects_of(load_runs([run])))


def gram(run: Path, *starts: str) -> list[np.ndarray]:
    """By ascending step, the Gram matrix of all parameters that begin with one of ``starts``."""
    frames = sorted(GramRecord(run / "geometry" / "measured"), key=lambda f: f.step)
    rows = [n for n, name in enumerate(SHAPES) if name.startswith(starts)]
    return [f.gram[rows].sum(0) for f in frames]


def mean_cosine(grams: list[np.ndarray]) -> np.ndarray:
    units = [g / np.sqrt(np.outer(np.diag(g), np.diag(g))) for g in grams]
    return np.mean(units, axis=0)


def only(drawn, figure: str):
    (picture,) = drawn[0][figure]
    return picture


def pairs(picture, start: int = 0) -> dict[tuple[str, str], float]:
    return {(row[start], row[start + 1]): row[-1] for row in picture.rows}


def check_pairs(found: dict, values: np.ndarray, tasks: tuple[str, ...]) -> None:
    assert len(found) == len(tasks) * (len(tasks) - 1) / 2
    for (a, b), value in found.items():
        assert value == pytest.approx(values[BOTH.index(a), BOTH.index(b)], abs=1e-12)


def test_one_run_gives_all_figures_but_those_that_compare_runs(drawn) -> None:
    pictures, missing = drawn
    assert list(missing) == [
        "GradVac Figure 2b",
        "GradVac Figure 6",
        "GradVac Figure 9",
        "GradVac Figure 11",
        "CATS Figure 6",
        "CATS Figure 7",
        "CATS Figure 8",
        "CATS Figure 9",
    ]
    assert set(pictures) | set(missing) == set(CATALOGUE)
    for found in pictures.values():
        for picture in found:
            assert picture.caption and picture.rows
            assert all(len(row) == len(picture.header) for row in picture.rows)


@pytest.mark.parametrize(
    ("figure", "start", "wanted"),
    [
        ("GradVac Figure 1", ("encoder",), "any-en"),
        ("GradVac Figure 10", ("decoder",), "en-any"),
    ],
)
def test_heat_maps_hold_mean_cosines_of_their_side(run, drawn, figure, start, wanted) -> None:
    tasks = tuple(t for t in BOTH if side(t) == wanted)
    check_pairs(pairs(only(drawn, figure)), mean_cosine(gram(run, *start)), tasks)


def test_the_whole_model_side_by_side(run, drawn) -> None:
    values = mean_cosine(gram(run, ""))
    picture = only(drawn, "GradVac Figure 2a")
    for name, wanted in (
        ("Any\N{RIGHTWARDS ARROW}En", "any-en"),
        ("En\N{RIGHTWARDS ARROW}Any", "en-any"),
    ):
        found = {
            k: v for r in picture.rows if r[0] == name for k, v in {(r[1], r[2]): r[-1]}.items()
        }
        check_pairs(found, values, tuple(t for t in BOTH if side(t) == wanted))
    assert len(drawn[0]["GradVac Figure 8"]) == 2
    assert "on the same 64 sentences at 3 steps (10 to 30), dropout off" in picture.caption


def test_encoder_minus_decoder(run, drawn) -> None:
    values = mean_cosine(gram(run, "encoder")) - mean_cosine(gram(run, "decoder"))
    rows = only(drawn, "GradVac Figure 4a").rows
    assert len(rows) == 12
    for _, a, b, *_, value in rows:
        assert value == pytest.approx(values[BOTH.index(a), BOTH.index(b)], abs=1e-12)


def test_layers_from_bottom_to_top(run, drawn) -> None:
    rows = only(drawn, "GradVac Figure 4b").rows
    layers = {
        "embedding": "embedding",
        "encoder.layers.0": "encoder",
        "decoder.layers.0": "decoder",
    }
    assert [r[1] for r in rows] == list(layers) * 2
    own = [n for n, t in enumerate(BOTH) if side(t) == "any-en"]
    upper = np.triu_indices(len(own), 1)
    for _, layer, value in rows[:3]:
        expected = mean_cosine(gram(run, layers[layer]))[np.ix_(own, own)][upper].mean()
        assert value == pytest.approx(expected, abs=1e-12)


def test_the_papers_pairs_over_steps(run, drawn) -> None:
    into, out_of = drawn[0]["GradVac Figure 4c"]
    assert {r[1] for r in into.rows} == {"fr-en, es-en", "fr-en, hi-en"}
    assert {r[1] for r in out_of.rows} == {"en-fr, en-es", "en-fr, en-hi"}
    a, b = BOTH.index("en-fr"), BOTH.index("en-hi")
    expected = [mean_cosine([g])[a, b] for g in gram(run, "decoder")]
    found = [r[2:] for r in out_of.rows if r[:2] == ("dec 1", "en-fr, en-hi")]
    assert [x for x, _ in found] == [10, 20, 30]
    assert [y for _, y in found] == pytest.approx(expected, abs=1e-12)


def test_active_edits_are_counted_as_in_the_paper_with_shares_beside(run, drawn) -> None:
    frames = list(GramRecord(run / "geometry"))
    rows = only(drawn, "GradVac Figure 3").rows
    for name, counts in (("PCGrad", "pcgrad_edits"), ("GradVac", "edits")):
        edited = {f.step: sum(getattr(f, counts)) for f in frames}
        assert {step: pairs for method, step, _, pairs in rows if method == name} == edited
        shares = {step: share for method, step, share, _ in rows if method == name}
        assert shares == pytest.approx(
            {f.step: 100 * edited[f.step] / sum(f.comparisons) for f in frames}
        )


def test_data_sizes_fall_from_left_to_right(drawn) -> None:
    rows = only(drawn, "GradVac Figure 7").rows
    assert [r[:2] for r in rows] == [(c, PAIRS[c]) for c in ("fr", "es", "hi", "sw")]


def test_train_and_validation_losses_by_level(run, drawn) -> None:
    rows = only(drawn, "CATS Figure 1").rows
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    high = [n for n, t in enumerate(BOTH) if set(t.split("-")) & {"fr", "es"}]
    expected = {
        line["step"]: np.mean([line["nll"] + n for n in high])
        for line in log
        if line["kind"] == "train"
    }
    found = {
        x: y for panel, name, x, y in rows if (panel, name) == ("high resource", "gradvac, train")
    }
    assert found == pytest.approx(expected)
    expected = {line["step"]: line["nll/low"] for line in log if line["kind"] == "valid"}
    found = {x: y for panel, name, x, y in rows if (panel, name) == ("low resource", "gradvac")}
    assert found == pytest.approx(expected)


def test_kinds_of_parameters_by_setting(run, drawn) -> None:
    kinds = {
        "embedding": ("embedding",),
        "encoder.self_attention.q": ("encoder.layers.0.self_attention",),
        "encoder.feed_forward.1": ("encoder.layers.0.feed_forward",),
        "encoder.norm": ("encoder.norm",),
        "decoder.cross_attention.q": ("decoder.layers",),
        "decoder.norm": ("decoder.norm",),
    }
    settings = {"M2O": "any-en", "O2M": "en-any", "M2M": ""}
    rows = {r[:2]: r[2:] for r in only(drawn, "CATS Figure 2").rows}
    aligned = {r[:2]: r[2] for r in only(drawn, "CATS Figure 3").rows}
    assert set(rows) == set(aligned) == {(s, k) for s in settings for k in kinds}
    for setting, wanted in settings.items():
        own = [n for n, t in enumerate(BOTH) if wanted in ("", side(t))]
        for kind, starts in kinds.items():
            each = []
            for g in gram(run, *starts):
                for n, i in enumerate(own):
                    for j in own[:n]:
                        a, b = np.sqrt(g[i, i]), np.sqrt(g[j, j])
                        squares = a * a + b * b
                        each.append((g[i, j] / a / b, 2 * a * b / squares, 2 * g[i, j] / squares))
            direction, norm, together = np.mean(each, axis=0)
            assert rows[setting, kind] == pytest.approx((direction, norm), abs=1e-12)
            assert aligned[setting, kind] == pytest.approx(together, abs=1e-12)


def test_curvature_and_the_cosine_of_high_and_low_resource_gradients(run, drawn) -> None:
    rows = only(drawn, "CATS Figure 5").rows
    low = {x: y for _, name, x, y in rows if name == "low resource"}
    assert low == pytest.approx({10: 2.0, 20: 4.0, 30: 6.0})
    level = np.array([1.0 if set(t.split("-")) & {"fr", "es"} else 0.0 for t in BOTH])
    expected = []
    for g in gram(run, ""):
        # hi and sw are low: the sum of their gradients against that of the others.
        a, b = level, 1 - level
        expected.append(a @ g @ b / np.sqrt((a @ g @ a) * (b @ g @ b)))
    found = [y for _, name, _, y in rows if name == "cosine of high and low"]
    assert found == pytest.approx(expected, abs=1e-12)


def changed(run: Path, section: str, **keys: object) -> Path:
    recipe = json.loads((run / "recipe.yaml").read_text())
    recipe.setdefault(section, {}).update(keys)
    write_json(run / "recipe.yaml", recipe)
    return run


def test_several_runs(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "joint", "joint", BOTH, boost=7)
    changed(other, "method", name="cats")
    (other / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    measure(other, BOTH)
    alone = [make_run(tmp_path / t, "joint", (t,), boost=5) for t in ("fr-en", "en-sw", "sw-en")]
    subjects = subjects_of(load_runs([run, other, *alone]))
    pictures, missing = draw_all(subjects)
    sizes = ["GradVac Figure 9", "GradVac Figure 11", "CATS Figure 8", "CATS Figure 9"]
    assert list(missing) == ["GradVac Figure 2b", *sizes]

    bleu = lambda folder, task: json.loads((folder / "scores.json").read_text())["directions"][
        task
    ]["bleu"]
    rows = pictures["GradVac Figure 6"][0].rows
    assert [r[1] for r in rows] == ["fr-en", "sw-en", "en-sw"] * 2
    for name, task, size, own, bilingual, gain in rows:
        folder = run if name == "gradvac" else other
        assert own == bleu(folder, task)
        assert bilingual == bleu(tmp_path / task, task)
        assert gain == own - bilingual
        assert size == PAIRS[task.replace("en", "").strip("-")]

    assert len(pictures["GradVac Figure 7"]) == 1  # of equal numbers, and not of bilingual models
    assert "gradvac and joint coincide (low resource)" in pictures["CATS Figure 6"][0].caption
    assert {p.name for p in pictures["GradVac Figure 1"]} == {
        "gradvac-fig-01-encoder-any-en-gradvac",
        "gradvac-fig-01-encoder-any-en-joint",
    }
    seen = [r for r in pictures["CATS Figure 7"][0].rows if r[1] == "gradvac"]
    assert seen[0][2] == 40_000 * 5  # five lines of 40,000 tokens before the first validation


def draw(figure: str, *runs: Path):
    """The only picture of one figure."""
    (picture,) = CATALOGUE[figure](subjects_of(load_runs(runs)))
    return picture


def test_bilingual_models_of_another_start_are_not_compared_with(run: Path, tmp_path: Path) -> None:
    alone = [make_run(tmp_path / t, "joint", (t,), boost=5) for t in ("fr-en", "sw-en")]
    changed(alone[0], "training", start_from="models/other")
    assert [r[1] for r in draw("GradVac Figure 6", run, *alone).rows] == ["sw-en"]
    changed(alone[1], "training", start_from="models/other")
    with pytest.raises(Missing, match="there are 1 and 2"):
        draw("GradVac Figure 6", run, *alone)


def test_runs_of_different_size_are_compared_where_nothing_else_differs(tmp_path: Path) -> None:
    runs = {}
    for name, width, tokens, method in (
        ("base", 8, 4096, "gradvac"),
        ("narrow", 4, 4096, "gradvac"),
        ("short", 8, 1024, "gradvac"),
        ("cats", 2, 512, "cats"),  # differs in everything
    ):
        folder = runs[name] = make_run(tmp_path / name, "gradvac", BOTH)
        changed(changed(folder, "batches", tokens=tokens), "method", name=method)
        changed(folder, "model", d_model=width * 8)
        (folder / "best").mkdir()
        save_file({"w": np.zeros((width, 4), np.float32)}, folder / "best" / "model.safetensors")
    measure(runs["base"], BOTH)
    measure(runs["narrow"], BOTH, (5, 6))

    ninth = draw("GradVac Figure 9", *runs.values())  # both were measured
    assert "with 16, " in ninth.caption and " with 32. Below: " in ninth.caption
    into = tuple(t for t in BOTH if side(t) == "any-en")
    for name, size in (("narrow", 16), ("base", 32)):
        found = {r[2:4]: r[-1] for r in ninth.rows if r[:2] == (name, size)}
        check_pairs(found, mean_cosine(gram(runs[name], "")), into)
    order = [str(t.get_text()) for t in ninth.figure.axes[2].get_yticklabels()]  # of its tree
    values = mean_cosine(gram(runs["narrow"], ""))[np.ix_(*[[BOTH.index(t) for t in into]] * 2)]
    heights = average(squareform(1 - values, checks=False))[:, 2]
    forks = {round(float(line.get_xdata()[1]), 9) for line in ninth.figure.axes[2].lines}
    assert set(order) == {t.removesuffix("-en") for t in into}
    assert forks == {round(float(h), 9) for h in heights}

    eleventh = draw("GradVac Figure 11", *runs.values())  # one of the two has only its record
    frames = {n: list(GramRecord(runs[n] / "geometry")) for n in ("short", "base")}
    decoder = frames["base"][0].groups.index("decoder.layers.0")
    assert [r[:2] for r in eleventh.rows] == [("short", 1024)] * 6 + [("base", 4096)] * 6
    for name, own in frames.items():
        found = {r[2:4]: r[-1] for r in eleventh.rows if r[0] == name}
        values = mean_cosine([f.gram[decoder] for f in own])
        check_pairs(found, values, tuple(t for t in BOTH if side(t) == "en-any"))

    names = lambda figure: {r[1] for r in draw(figure, *runs.values()).rows}
    assert names("CATS Figure 1") == {"base"}
    assert names("CATS Figure 9") == {"base", "narrow"}
    assert "base 4,096, short 1,024" in draw("CATS Figure 8", *runs.values()).caption
    with pytest.raises(Missing, match="of another method, with the same directions and sizes"):
        draw("CATS Figure 6", *runs.values())


def test_quality_against_similarity_of_models_that_share_a_direction(tmp_path: Path) -> None:
    runs, x, y = [], [], []
    for n, partner in enumerate(("es", "hi", "sw", "tr")):
        tasks = ("fr-en", f"{partner}-en")
        run = make_run(tmp_path / partner, "gradvac", tasks, boost=8 + n)
        measure(run, tasks, (n + 1,))
        runs.append(run)
        x.append(mean_cosine(gram(run, ""))[0, 1])
        y.append(json.loads((run / "scores.json").read_text())["directions"]["fr-en"]["bleu"])
    pictures, _ = draw_all(subjects_of(load_runs(runs)))
    (picture,) = pictures["GradVac Figure 2b"]
    assert [r[0] for r in picture.rows] == ["es", "hi", "sw", "tr"]
    assert [r[1] for r in picture.rows] == pytest.approx(x, abs=1e-12)
    assert [r[2] for r in picture.rows] == y
    r = f"{np.corrcoef(x, y)[0, 1]:.2f}".replace("-", "\N{MINUS SIGN}")
    assert f"r = {r}, " in picture.caption
    _, missing = draw_all(subjects_of(load_runs(runs[:2])))
    assert missing["GradVac Figure 2b"].endswith("there are 2")


def test_a_run_without_gradients_says_how_to_get_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "joint", "joint", ("fr-en", "sw-en"))
    pictures, missing = draw_all(subjects_of(load_runs([run])))
    assert set(pictures) == {"GradVac Figure 7", "CATS Figure 1"}
    assert missing["GradVac Figure 1"] == "Gram matrices: gradvac geometry RUN measures them"


def test_a_record_of_training_gives_what_its_granularity_allows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "gradvac", "gradvac", ("fr-en", "sw-en"))
    pictures, missing = draw_all(subjects_of(load_runs([run])))
    (picture,) = pictures["GradVac Figure 1"]
    frames = list(GramRecord(run / "geometry"))
    encoder = [f.gram[f.groups.index("encoder.layers.0")] for f in frames]
    ((*_, value),) = picture.rows
    assert value == pytest.approx(mean_cosine(encoder)[0, 1], abs=1e-12)
    assert "on the training batches of 40 steps (0 to 390), dropout on" in picture.caption
    assert (
        missing["CATS Figure 2"] == "Gram matrices at parameter_kind; there are those at all_layer"
    )
    changed(run, "method", granularity="whole_model")
    _, missing = draw_all(subjects_of(load_runs([run])))
    assert missing["GradVac Figure 1"].startswith("Gram matrices at enc_dec; there are those at")


def test_the_command_writes_pictures_numbers_and_captions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "gradvac", "gradvac", ("fr-en", "sw-en"))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["figures", str(run), "--out", str(out)])
    assert done.exit_code == 0, done.output
    said = done.output.replace("\n", " ")
    assert "GradVac Figure 6: not drawn; it needs a multilingual run and bilingual ones" in said
    for kind, magic in {
        "svg": b"<?xml",
        "pdf": b"%PDF",
        "png": b"\x89PNG",
        "csv": b"task,",
    }.items():
        file = out / f"gradvac-fig-01-encoder-any-en.{kind}"
        assert file.read_bytes().startswith(magic)
    with (out / "gradvac-fig-01-encoder-any-en.csv").open() as lines:
        ((*names, value),) = list(csv.reader(lines))[1:]
    assert names == ["fr-en", "sw-en", "Western European", "Benue-Congo"]
    assert -1 <= float(value) <= 1
    captions = (out / "captions.txt").read_text()
    assert "Counterpart of GradVac Figure 1. Cosines of gradients of the encoder" in captions


def test_another_folder_of_measurements_belongs_to_one_run(run: Path, tmp_path: Path) -> None:
    views = load_runs([run])
    (subject,) = subjects_of(views, run / "geometry" / "measured")
    assert subject.geometry is not None and subject.geometry.measured is not None
    with pytest.raises(RunError, match="belongs to one run; 2 are given"):
        subjects_of([*views, *views], tmp_path)
