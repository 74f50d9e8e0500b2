"""The notebooks are stored without outputs, run without a warning, and hold what they say."""

import ast
import pathlib
import re

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
_HANGS = 120  # seconds that no cell may take


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_notebooks_are_found():
    assert [name[:2] for name in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestEveryNotebook:
    def test_is_stored_as_it_is_before_a_run(self, name):
        notebook = read(name)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        for cell in code(notebook):
            assert cell.outputs == [] and cell.execution_count is None and not cell.metadata

    def test_uses_public_names_alone(self, name):
        source = "\n".join(cell.source for cell in code(read(name)))
        assert not re.search(r"\._(?!replace\b)[a-zA-Z]|import _", source)

    def test_runs_and_its_assertions_hold(self, name, tmp_path, monkeypatch):
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
        notebook = read(name)
        claims = ast.parse(code(notebook)[-1].source).body
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.Module(claims, [])))
        place = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(notebook, timeout=_HANGS, kernel_name="python3", resources=place).execute()
        written = [output for cell in code(notebook) for output in cell.outputs]
        complaints = [output.text for output in written if output.get("name") == "stderr"]
        assert complaints == []
        assert any("image/png" in output.get("data", {}) for output in written) or any(
            "image/svg+xml" in output.get("data", {}) for output in written
        )
