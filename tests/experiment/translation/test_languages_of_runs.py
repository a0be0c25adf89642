"""A run whose files have the codes of FLORES, with names of its own or not."""

import json
from pathlib import Path

import pytest
import sacrebleu
import yaml
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.experiment.view.run_view import FROM_ENGLISH, TaskView
from tests.build import NOUNS, VERBS, toy_recipe

WORDS = "打开 关闭 文件 页面 表格 图像 保存 打印 插入 删除".split()
PAIRS = [
    (f"{one} {other}", f"{a}，{b}")
    for one, a in zip(VERBS, WORDS, strict=True)
    for other, b in zip(NOUNS, WORDS, strict=False)
]


@pytest.fixture
def flores(tmp_path: Path) -> Path:
    """train, valid and test, one file per language, and a recipe that names no direction."""
    recipe = toy_recipe()
    del recipe["data"]["directions"]
    for part, own in {"train": PAIRS[:90], "valid": PAIRS[90:95], "test": PAIRS[95:]}.items():
        codes = ("en", "zh") if part == "train" else ("eng_Latn", "zho_Hans")
        for code, lines in zip(codes, zip(*own, strict=True), strict=True):
            file = tmp_path / f"{part}.{code}"
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths = {code: f"{part}.{code}" for code in codes}
        recipe["data"][part] = [{"format": "text", "paths": paths}]
    recipe["training"]["steps"], recipe["vocabulary"]["size"] = 4, 325
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return tmp_path


def scored(folder: Path, *sets: str) -> dict:
    run, words = str(folder / "run"), [w for s in sets for w in ("--set", s)]
    for command in (
        ["train", str(folder / "recipe.yaml"), "--run", run, *words],
        ["evaluate", run],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    return json.loads((folder / "run" / "scores.json").read_text(encoding="utf-8"))


def assert_chinese(folder: Path, scores: dict, task: str) -> None:
    """The scores of a direction are sacreBLEU's with its tokenizer for Chinese."""
    texts = map(json.loads, (folder / "run" / "translations.jsonl").read_text("utf-8").splitlines())
    own = [x for x in texts if x["direction"] == task]
    bleu = sacrebleu.corpus_bleu(
        [x["hypothesis"] for x in own], [[x["reference"] for x in own]], tokenize="zh"
    )
    found = scores["directions"][task]
    assert found["sentences"] == len(own) == 5 and found["bleu"] == pytest.approx(bleu.score)
    assert "|tok:zh|" in found["bleu_signature"] and found["family"] == "Sino-Tibetan"


def test_test_files_of_flores_are_those_of_the_training_text(flores: Path) -> None:
    scores = scored(flores)
    assert set(scores["directions"]) == {"zh-en", "en-zh"} and scores["unscored"] == []
    assert_chinese(flores, scores, "en-zh")


def test_directions_named_as_flores_does_keep_their_names(flores: Path) -> None:
    scores = scored(flores, "data.directions=[eng_Latn-zho_Hans]")
    assert set(scores["directions"]) == {"eng_Latn-zho_Hans"}
    assert_chinese(flores, scores, "eng_Latn-zho_Hans")
    assert set(scores["averages"]) >= {"En->Any", "Sino-Tibetan"}


def test_languages_named_as_flores_does_pair_with_english(flores: Path) -> None:
    scores = scored(flores, "data.languages=[zho-Hans, eng_Latn]", "data.directions=from_en")
    assert set(scores["directions"]) == {"eng_Latn-zho_Hans"}


def test_a_report_knows_english_by_any_tag() -> None:
    view = TaskView.of("eng_Latn-zho_Hans", None)
    assert (view.side, view.partner, view.family) == (FROM_ENGLISH, "zho_Hans", "Sino-Tibetan")
    assert view.label == "English → Chinese"
