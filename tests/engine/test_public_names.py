import subprocess
import sys

import gradvac

WITHOUT_TOOLKIT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import gradvac
assert not {absent} & set(sys.modules), {absent} & set(sys.modules)
gradvac.Engine, gradvac.GradVac()
layer = gradvac.engine.per_task.nn.Linear(2, 1)
rows = layer.weight.detach().repeat(2, 1)
print(gradvac.diagnose(layer, rows, ["a", "b"], lambda m, x: m(x).mean()))
"""
TOOLKIT = {
    "matplotlib", "numpy", "polib", "pydantic", "rich", "sacrebleu", "safetensors", "scipy",
    "sentencepiece", "typer", "yaml",
}  # fmt: skip


def test_importing_needs_torch_alone():
    code = WITHOUT_TOOLKIT.format(absent=TOOLKIT)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_the_public_names():
    assert set(gradvac.__all__) == {
        "CATS", "FAMO", "GradNorm", "MGDA", "TorchJD",
        "CorpusError", "Diagnosis", "Engine", "GradVac", "GradientError", "GradvacError", "Joint",
        "Method", "NotFiniteError", "PCGrad", "ParameterGroup", "RecipeError", "RunError",
        "StaticWeights", "StepGeometry", "StepReport", "diagnose", "parameter_groups",
        "Grouping", "Heads", "NonFinite", "RankError", "__version__", "register",
        "Preflight", "preflight",
    }  # fmt: skip
    assert all(hasattr(gradvac, name) for name in gradvac.__all__)
