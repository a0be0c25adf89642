"""Exports through the command line, and translating with CTranslate2 behind the same verb."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ctranslate2
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RunError
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.translation.model_folder import find_model
from gradvac.translation.transformer import Transformer
from tests.faults.damage import FAULTS

runner = CliRunner()
LINES = "Ouvrir le fichier\n\nWählen Sie die Zellen aus.\nŞu anda açık olan belgeyi kaydeder.\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder that can be written to."""
    return shutil.copytree(resolve("shipped:start"), tmp_path / "model")


def gradvac(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exception is not None
    return str(result.exception)


def test_export_writes_what_each_program_opens(model, tmp_path):
    for to, opened in (("huggingface", AutoConfig.from_pretrained), ("ctranslate2", _translator)):
        out = tmp_path / "out" / to
        said = gradvac("export", str(model), "--to", to, str(out))
        size = sum(file.stat().st_size for file in out.iterdir())
        assert said == f"{size:,} bytes in {out}\n"
        assert opened(str(out))
        assert {f.stat().st_mode & 0o777 for f in out.iterdir()} == {0o666 & ~_umask()}


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("to", ["gradvac", "huggingface", "ctranslate2"])
def test_an_export_says_how_it_is_loaded(model, tmp_path, to, monkeypatch):
    out = tmp_path / "out"
    gradvac("export", str(model), "--to", to, str(out))
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "| English | `en` | `>>en<<` | `<2en>` |" in text and "Unicode NFC" not in text
    (code,) = re.findall(r"```(?:python|console)\n(.*?)```", text, re.DOTALL)
    if to == "gradvac":
        assert "gradvac translate FOLDER --to en" in code
        return
    printed: list[object] = []
    code = code.replace("FOLDER", str(out)).replace("...", "Ouvrir le fichier")
    exec(code, {"print": printed.append})
    assert "open file" in str(printed[0]).lower()


def _translator(folder: str) -> ctranslate2.Translator:
    return ctranslate2.Translator(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_export_takes_the_place_of_its_like_and_of_nothing_else(model, tmp_path):
    out = tmp_path / "out"
    gradvac("export", str(model), "--to", "ctranslate2", str(out))
    whole = (out / "model.bin").stat().st_size
    gradvac("export", str(model), "--to", "ctranslate2", "--quantization", "int8", str(out))
    assert (out / "model.bin").stat().st_size < whole
    said = refused("export", str(model), "--to", "huggingface", str(out))
    assert "holds model.bin" in said and "name another folder" in said
    assert (out / "model.bin").exists()
    assert {f.name for f in tmp_path.iterdir()} == {"model", "out"}  # nothing half-made stays


def test_an_export_that_fails_leaves_things_as_they_were(model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    gradvac("export", str(model), "--to", "huggingface", str(out))
    before = {f.name: f.read_bytes() for f in out.iterdir()}

    def half(*parts: object) -> None:
        (Path(str(parts[-1])) / "config.json").write_text("half")
        raise RunError("the disk is full")

    monkeypatch.setattr("gradvac.experiment.translation.export.write_huggingface", half)
    assert refused("export", str(model), "--to", "huggingface", str(out)) == "the disk is full"
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    assert {f.name for f in tmp_path.iterdir()} == {"model", "out"}


def test_wrong_options_are_named(model, tmp_path):
    out = str(tmp_path / "out")
    assert "--to onnx; allowed: gradvac, huggingface" in refused(
        "export", str(model), "--to", "onnx", out
    )
    assert "only --to ctranslate2" in refused("export", str(model), out, "--quantization", "int8")
    assert "is a file" in refused("export", str(model), str(model / "model.json"))
    assert "--engine onnx; allowed: gradvac, ctranslate2" in refused(
        "translate", str(model), "--engine", "onnx"
    )


def translated(folder: Path, *options: str) -> str:
    result = runner.invoke(app, ["translate", str(folder), "--beam", "1", *options], input=LINES)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_translate_with_ctranslate2_says_the_same_and_keeps_its_export(model, monkeypatch):
    expected = translated(model)
    assert expected.count("\n") == 4 and expected.startswith("Open File\n\n")
    with monkeypatch.context() as ours_is_away:
        ours_is_away.delattr(Transformer, "step")
        assert translated(model, "--engine", "ctranslate2") == expected
        (cached,) = (model / "ctranslate2").iterdir()
        made = (cached / "model.bin").stat()
        assert translated(model, "--engine", "ctranslate2") == expected
    after = (cached / "model.bin").stat()
    assert (after.st_ino, after.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)


def test_a_model_that_changed_is_exported_anew(model):
    translated(model, "--engine", "ctranslate2")
    (old,) = (model / "ctranslate2").iterdir()
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["decoder.norm.bias"][:] += 0.5
    save_file(tensors, file)
    assert translated(model, "--engine", "ctranslate2") == translated(model)
    (new,) = (model / "ctranslate2").iterdir()
    assert new != old


@pytest.mark.parametrize("name", ["model.bin", "config.json", "shared_vocabulary.json"])
def test_a_kept_export_that_is_damaged_is_made_again(model, name, caplog):
    expected = translated(model, "--engine", "ctranslate2")
    (cached,) = (model / "ctranslate2").iterdir()
    whole = (cached / name).read_bytes()
    for fault in ("truncated", "flipped in the middle", "emptied", "gone", "a FIFO", "a folder"):
        FAULTS[fault](cached / name)
        caplog.clear()
        assert translated(model, "--engine", "ctranslate2") == expected, fault
        assert f"{cached / name}: " in caplog.text and "made again" in caplog.text
        assert (cached / name).read_bytes() == whole
    (cached / "SHA256SUMS").unlink()  # as of an earlier version
    assert translated(model, "--engine", "ctranslate2") == expected
    assert "no sums to compare it with" in caplog.text


def other_parameters(tensors: dict) -> dict[str, dict]:
    """What may be wrong with the parameters of a model, by what is said of it."""
    name = "encoder.layers.0.feed_forward.up.weight"
    rest = {key: value for key, value in tensors.items() if key != name}
    turned = tensors[name].T.contiguous()
    return {
        f"missing: ['{name}']": rest,
        "not of this model: ['foreign']": tensors | {"foreign": turned},
        f"shapes: ['{name} ": rest | {name: turned},
    }


@pytest.mark.parametrize("to", ["gradvac", "huggingface", "ctranslate2"])
def test_parameters_of_another_model_are_not_exported(model, tmp_path, to):
    file = model / "model.safetensors"
    for message, tensors in other_parameters(load_file(file)).items():
        save_file(tensors, file)
        said = refused("export", str(model), "--to", to, str(tmp_path / "out"))
        assert said.startswith(f"{file}: parameters of another model") and message in said
        assert not (tmp_path / "out").exists()


def test_a_shape_that_the_file_cannot_fill_is_refused_before_it_is_built(model):
    """A bit more in d_model would otherwise ask for all the memory there is."""
    file = model / "model.json"
    shape = json.loads(file.read_text())
    (model / "SHA256SUMS").unlink()  # as in a model of an earlier version, or of a stranger
    file.write_text(json.dumps(shape | {"encoder_layers": 10**9, "d_model": 2**40}))
    with pytest.raises(RunError, match=r"model\.safetensors: 3,\d+,\d+ parameters; model\.json"):
        find_model(model).load()


def test_the_working_directory_is_no_place_for_an_export(model, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (".", "..", str(tmp_path)):
        assert "the working directory" in refused("export", str(model), place)
    assert tmp_path.exists()


def test_where_nothing_can_be_kept_it_translates_all_the_same(model):
    (model / "ctranslate2").write_text("no folder")
    assert translated(model, "--engine", "ctranslate2") == translated(model)
    assert (model / "ctranslate2").read_text() == "no folder"


def test_the_shipped_model_is_exported_by_its_name(tmp_path):
    assert gradvac("export", "shipped:start", str(tmp_path / "out"))
    found = load_file(tmp_path / "out" / "model.safetensors")
    kept = load_file(resolve("shipped:start") / "model.safetensors")
    assert found.keys() == kept.keys() and all(found[k].equal(kept[k]) for k in kept)
    assert "assets/nothing: holds no model" in refused("export", "shipped:nothing", str(tmp_path))
    said = runner.invoke(app, ["translate", "shipped:start", "--beam", "1"], input=LINES)
    assert said.stdout.startswith("Open File\n\n")


def test_without_a_model_it_is_the_shipped_one_that_writes_the_language():
    def said(*arguments):
        done = runner.invoke(app, ["translate", *arguments, "--beam", "1"], input="Open file\n")
        return done.exit_code, done.stdout

    french = said("--to", "fr")
    assert french == said("shipped:start-from-en", "--to", "fr") and french[1] != "Open file\n"
    assert said("--to", "en") == said("shipped:start")
    said_no = refused("translate", "--to", "hi")
    assert "translate into: cs, de, en, es, fi, fr, id, ru, tr; name a run" in said_no


def test_names_that_an_ascii_system_cannot_have_are_named(tmp_path):
    """Those of files come from a recipe, which is UTF-8 everywhere."""
    (tmp_path / "recipe.yaml").write_text('data: {train: [{path: "s\xf8k.tsv"}]}', "utf-8")
    command = [sys.executable, "-m", "gradvac", "train", "recipe.yaml", "--run", "run"]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **ascii_only}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert r"s\xf8k.tsv' cannot be written in ascii" in done.stderr


def test_the_shipped_model_is_left_as_it_is():
    said = runner.invoke(app, ["translate", "--engine", "ctranslate2"], input=LINES)
    assert said.exit_code == 0 and said.stdout.startswith("Open File\n\n")
    assert not (resolve("shipped:start") / "ctranslate2").exists()
