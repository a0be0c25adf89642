"""The notebook of the docs is run from the first cell to the last, and kept without outputs."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FILE = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def test_it_runs_and_shows_tables_and_pictures(tmp_path):
    notebook = nbformat.read(FILE, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    shown = [
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    ]
    assert shown.count("text/html") == 2 and shown.count("image/png") == 4
    said = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert "StepReport(step 59: tasks fr, es, hi, zh" in said and "Warning" not in said


def test_it_is_kept_without_outputs():
    for cell in nbformat.read(FILE, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
