"""The exchange of files with COMET, whose scores are written by hand here."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RunError
from gradvac.experiment.compare.comet import export_comet, read_comet
from tests.experiment.scored_runs import LEVELS, REFERENCES, outputs, write_run

SCORES = {"joint": {"fr-en": 0.5, "de-en": 0.6, "ne-en": 0.25}, "better": {"ne-en": 0.75}}


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    found = [
        write_run(tmp_path / "joint", outputs(0.4, 1), 1, 3.0),
        write_run(tmp_path / "better", outputs(0.2, 2, ("ne-en",)), 1, 3.0),
    ]
    lines = (found[0] / "translations.jsonl").read_text().splitlines()
    first = {**json.loads(lines[0]), "hypothesis": " two\rlines \u2028"}
    (found[0] / "translations.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    export_comet(found, tmp_path / "comet", say=lambda text: None)
    return found


def score_by_hand(folder: Path) -> None:
    """What comet-score --to_json writes, read from the commands of score.sh alone."""
    for line in (folder / "score.sh").read_text().splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["comet-score"]:
            continue
        at = {flag: words.index(flag) for flag in ("-s", "-t", "-r", "--to_json")}
        files = words[at["-t"] + 1 : at["-r"]]
        tree = {}
        for file in files:
            number, direction, _ = file.split(".")
            score = SCORES["joint" if number == "000" else "better"][direction]
            texts = (folder / file).read_text().splitlines()
            # Half of the sentences a little higher, half a little lower.
            tree[file] = [
                {"mt": text, "COMET": score + (0.01 if n % 2 else -0.01)}
                for n, text in enumerate(texts)
            ]
        (folder / words[at["--to_json"] + 1]).write_text(json.dumps(tree))


def test_what_is_written_is_what_comet_reads(runs, tmp_path):
    folder = tmp_path / "comet"
    assert (folder / "fr-en.ref").read_text().splitlines() == REFERENCES["fr-en"]
    assert (folder / "fr-en.src").read_text() == "".join(f"S {r}\n" for r in REFERENCES["fr-en"])
    assert (folder / "000.fr-en.hyp").read_text().splitlines()[0] == "two lines"
    command = (
        "comet-score --model Unbabel/wmt22-comet-da -s ne-en.src -t 000.ne-en.hyp 001.ne-en.hyp "
        "-r ne-en.ref --to_json ne-en.json"
    )
    assert command in (folder / "score.sh").read_text().splitlines()


def test_scores_come_back_into_the_comparison(runs, tmp_path):
    folder, out = tmp_path / "comet", tmp_path / "table.json"
    score_by_hand(folder)
    flags = ["--comet", str(folder), "--test", "none", "--out", str(out)]
    done = CliRunner().invoke(app, ["compare", *map(str, runs), *flags], catch_exceptions=False)
    assert done.exit_code == 0 and "COMET: Unbabel/wmt22-comet-da" in done.output
    records = [r for r in json.loads(out.read_text())["records"] if r["metric"] == "comet"]
    means = {(r["row"], r["column"]): r["mean"] for r in records}
    assert means["joint", "fr-en"] == pytest.approx(0.5)
    assert means["joint", "avg"] == pytest.approx((0.5 + 0.6 + 0.25) / len(LEVELS))
    assert means["better", "ne-en"] == pytest.approx(0.75) and ("better", "avg") not in means


def test_scores_of_other_translations_are_refused(runs, tmp_path):
    folder = tmp_path / "comet"
    with pytest.raises(RunError, match=r"manifest.json: fr-en: no .*fr-en.json"):
        read_comet(folder)
    score_by_hand(folder)
    lines = (runs[1] / "translations.jsonl").read_text().replace("open", "close")
    (runs[1] / "translations.jsonl").write_text(lines)
    with pytest.raises(RunError, match=r"001.ne-en.hyp: not the translations of .*better any more"):
        read_comet(folder)
    (folder / "fr-en.json").write_text(json.dumps({"000.fr-en.hyp": [{"mt": "x"}]}))
    with pytest.raises(RunError, match=r"fr-en\.json: 000\.fr-en\.hyp\.0\.COMET: Field required"):
        read_comet(folder)
