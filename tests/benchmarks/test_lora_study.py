"""The study of adapters on a tiny random model, and the page that is written from it."""

import gc
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")
from benchmarks import lora_material, lora_page, lora_study

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial-lora.md"
KEPT = ROOT / "evidence" / "lora-smollm2.json"

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the command writes, of one seed."""
    folder = tmp_path_factory.mktemp("lora")
    page = folder / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), "utf-8")
    flags = f"--quick --seeds 1 --steps 2 --folder {folder / 'runs'} --json {folder / 'found.json'}"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["x", *flags.split(), "--page", str(page), "--pictures", str(folder)]
        )
        # Which would hold for all tests after it in this process.
        patch.setattr(lora_study, "keep_freed_memory", lambda: None)
        gc.freeze()  # each step looks for garbage: not in what other tests have imported
        lora_study.main()
        gc.unfreeze()
    torch.set_num_threads(threads)
    assert (folder / "lora-conflicts.png").stat().st_size > 1000
    assert (folder / "runs" / "adapter" / "adapter_model.safetensors").exists()
    return json.loads((folder / "found.json").read_text(encoding="utf-8")), page.read_text("utf-8")


def test_losses_fall_and_the_adapter_is_read_by_peft_alone(found):
    tree, page = found
    part = tree["losses"]
    languages = set(lora_material.LANGUAGES)
    assert part["before"].keys() == languages
    assert [run["method"] for run in part["runs"]] == ["joint", "gradvac"]
    for run in part["runs"]:
        assert run["losses"].keys() == languages
        assert sum(run["losses"].values()) < sum(part["before"].values())
    assert part["reloaded"] < 1e-5
    assert f"| before | {part['before']['fr']:.3f} |" in page


def test_the_cosines_are_by_layer_and_pair(found):
    part = found[0]["losses"]["conflicts"]
    assert part["steps"] == 2 and len(part["groups"]) == 2
    assert part["pairs"] == ["fr-es", "fr-cs", "es-cs", "fr-tr", "es-tr", "cs-tr"]
    for name, low in (("cosine", -1), ("negative", 0)):
        rows = torch.tensor(part[name])
        assert rows.shape == (2, 6)
        assert bool(((rows >= low) & (rows <= 1)).all())


def test_the_cost_stands_beside_the_plain_trainer(found):
    tree, page = found
    assert list(tree["cost"]) == ["packed", "padded"]
    for batch, trainers in tree["cost"].items():
        assert list(trainers) == ["plain", "joint", "gradvac"]
        for own in trainers.values():
            for steps in (*own["seconds"], *own["mib"]):
                assert len(steps) == lora_study.FIRST + 1 and min(steps) > 0
        plain = trainers["plain"]["seconds"][0][-1]
        assert f"| SFTTrainer, {batch} | {plain:.2f} | 1.00 |" in page


def test_the_page_shows_the_numbers_kept():
    text = PAGE.read_text(encoding="utf-8")
    tree = json.loads(KEPT.read_text(encoding="utf-8"))
    assert tree["model"] == "smollm2"
    assert lora_page.write_page(text, tree) == text
    assert text.count("<!-- end -->") == len(lora_page.BLOCKS)


def test_texts_are_of_every_language_and_the_same_for_a_seed():
    rows = lora_material.texts("test", 3, 7)
    assert rows == lora_material.texts("test", 3, 7) != lora_material.texts("test", 3, 8)
    assert sorted(row["task"] for row in rows) == sorted([*lora_material.LANGUAGES] * 3)
    assert all(row["prompt"].startswith("English: ") for row in rows)
