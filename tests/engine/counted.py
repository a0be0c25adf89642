"""Runs a module on the make-believe device, in a process that has no other tests in it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.utils.backend_registration

ROOT = Path(__file__).parents[2]


def run_alone(module: str, *flags: str) -> str:
    """What a module prints; skips where torch makes no device of Python."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch makes no device of Python")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    found = subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def counted(module: str) -> Any:
    """What a module prints as JSON."""
    return json.loads(run_alone(module))
