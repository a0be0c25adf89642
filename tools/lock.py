"""Write anew what pip may take for `make`: every file's SHA-256, in four lock files.

requirements-toolkit.txt has what `make demo` installs, requirements.txt what `make test` adds.
The versions alone are in constraints.txt, for those who install without.

    pip install uv
    python -m tools.lock              # keeps the versions that are locked, as far as they fit
    python -m tools.lock --upgrade    # takes the newest ones

PyTorch is apart from the rest. Its build for CPUs is not on every index; the one that is, for CUDA,
depends on some twenty packages more. pip prefers, of several files whose hash is allowed, one
whose address tells its hash; a single list of both would never give the build for CPUs where that
lies in a folder.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALL, TOOLKIT, CPU, CUDA = (
    ROOT / f"requirements{end}.txt" for end in ("", "-toolkit", "-cpu", "-cuda")
)
VERSIONS = ROOT / "constraints.txt"
# uv does not find the build for CPUs; this is the SHA-256 of its file for Linux on x86-64,
# torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl. Another version needs that of its own.
CPU_BUILD = ("2.13.0", "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b")
OF_TORCH = re.compile(r"(torch==|cuda-|nvidia-|triton==)")
HEAD = "# Written by tools/lock.py: {}"


def blocks(text: str) -> list[str]:
    """The pins of a lock file, each with its hashes."""
    return [pin for pin in re.split(r"\n(?=\S)", text.strip()) if not pin.startswith(("#", "-r"))]


def resolved(extra: str, pins: list[str], options: list[str]) -> list[str]:
    """What uv finds for an extra in pyproject.toml, from the pins there are."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock.txt"
        out.write_text("\n".join(pins), encoding="utf-8")
        command = ["uv", "pip", "compile", "pyproject.toml", "--extra", extra, "--quiet"]
        command += ["--extra", "build", "--universal", "--python-version", "3.11"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "-o", str(out)]
        subprocess.run([*command, *options], cwd=ROOT, check=True)
        return blocks(out.read_text(encoding="utf-8"))


def write(file: Path, words: str, pins: list[str]) -> None:
    """Write a lock file, and say how much is in it."""
    file.write_text("\n".join([HEAD.format(words), *pins, ""]), encoding="utf-8")
    print(f"{file.name}: {len(pins)}")


def main() -> None:
    files = [file for file in (ALL, TOOLKIT, CUDA) if file.exists()]
    locked = [pin for file in files for pin in blocks(file.read_text(encoding="utf-8"))]
    pins = resolved("dev", locked, sys.argv[1:])
    toolkit = resolved("toolkit", pins, [])
    if not set(toolkit) <= set(pins):
        raise SystemExit("the toolkit's versions differ from those of the extra dev")
    version, digest = CPU_BUILD
    if not any(pin.startswith(f"torch=={version} ") for pin in pins):
        raise SystemExit(f"PyTorch is not {version} any more: CPU_BUILD needs the new one's")
    shared = [pin for pin in toolkit if not OF_TORCH.match(pin)]
    write(TOOLKIT, "the toolkit, without PyTorch.", shared)
    rest = [pin for pin in pins if not OF_TORCH.match(pin) and pin not in shared]
    write(ALL, f"the toolkit and what tests need.\n-r {TOOLKIT.name}", rest)
    write(CPU, "PyTorch for CPUs.", [f"torch=={version}+cpu \\\n    --hash=sha256:{digest}"])
    write(CUDA, "PyTorch as most indexes have it.", [pin for pin in pins if OF_TORCH.match(pin)])
    firsts = [pin.split(" \\\n")[0] for pin in pins]  # a version, and where it is the one to take
    versions = [pin for pin in firsts if not re.match(r"cuda-|nvidia-|triton==", pin)]
    write(VERSIONS, "the versions alone, for pip's --constraint.", versions)


if __name__ == "__main__":
    main()
