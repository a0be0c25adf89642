"""Nothing that reads files can run what is in them: seen in the source itself."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "gradvac"
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def dangers(tree: ast.AST) -> list[str]:
    """Imports and calls that can run what a file says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in PICKLES]
        if not isinstance(node, ast.Call):
            continue
        call, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        found += [call] * (call in {"eval", "exec", "compile", "yaml.load", "yaml.unsafe_load"})
        found += [call] * (call == "torch.load" and given.get("weights_only") != "True")
        found += [call] * (_opens_code(call) and given.get("trust_remote_code") != "False")
        found += [call] * ("allow_pickle" in given and given["allow_pickle"] != "False")
    return found


def _opens_code(call: str) -> bool:
    """Whether it is a call of transformers that can run code of a model's folder."""
    name = call.rpartition(".")[2]
    return name == "from_pretrained" or (name == "from_config" and "TransformerSpec" not in call)


def test_no_pickle_and_no_eval():
    sources = sorted(SOURCE.rglob("*.py"))
    assert len(sources) > 100
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sources}
    assert {file.name: d for file, tree in trees.items() if (d := dangers(tree))} == {}


STAGED = {
    "translation/prepare.py",
    "tagging/prepare.py",
    "run/lock.py",
}  # in a folder that is not there yet; a lock, never read


def writes(tree: ast.AST) -> list[str]:
    """Calls that write a file in place: who reads it meanwhile, or after a kill, finds a part."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, first = node.func.attr, node.args[0] if node.args else None
            mode = first.value if isinstance(first, ast.Constant) else ""
            found += [name] * (name in {"write_text", "write_bytes"})
            found += [name] * (name == "open" and mode in ("w", "wb", "x", "xb"))
    return found


def test_files_of_a_run_are_written_whole():
    rooms = SOURCE / "experiment"
    sources = {f.relative_to(rooms).as_posix(): f for f in rooms.rglob("*.py")}
    found = {n: writes(ast.parse(f.read_text(encoding="utf-8"))) for n, f in sources.items()}
    assert {name for name, calls in found.items() if calls} == STAGED | {"run/files.py"}
    assert {call for name in STAGED for call in found[name]} == {"open"}
    for line in ("file.write_text(x)", "file.open('w')", "file.open('wb')", "f.write_bytes(x)"):
        assert writes(ast.parse(line)), line
    assert not writes(ast.parse("write_text(file, x)\nfile.open()\nfile.open('ab')"))


def test_it_would_be_seen():
    for line in (
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(x, Loader)",
        "AutoConfig.from_pretrained(name)",
        "auto.from_pretrained(name, trust_remote_code=True)",
        "transformers().AutoModel.from_config(config)",
    ):
        assert dangers(ast.parse(line)), line
    assert not dangers(ast.parse("torch.load(f, weights_only=True)\nmodel.eval()\nnp.load(f)"))
