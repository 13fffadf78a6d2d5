"""The notebooks run from the first cell to the last, with a small budget, and show what they promise."""

import os
import pathlib

import nbclient
import nbformat
import pytest

from detzoo.config import to_json

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob('experiments/*.ipynb'))


@pytest.fixture
def parameters(tiny_config, tmp_path):
    """The source of the cell of parameters: the tiny RetinaNet of 16 steps."""
    config = tmp_path / 'tiny.py'
    config.write_text(
        'from detzoo.config import from_json\n\n\n'
        f'def get_config(arg=None):\n    return from_json({to_json(tiny_config())!r})\n'
    )
    return (
        f"REPOSITORY, CONFIG, NAME, WORKDIR = '', {str(config)!r}, 'tiny', 'run'\n"
        "CHANGES = {'training.steps': 16, 'training.evaluate_every': 8, 'model.score_threshold': 0.06}\n"
    )


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, parameters, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])))
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', [])]
    assert len(cells) == 1
    cells[0].source = parameters
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
    pictures = [output for output in outputs if 'image/png' in output.get('data', {})]
    texts = ''.join(output.text for output in outputs if output.output_type == 'stream')
    assert len(pictures) >= 2 and 'Average Precision' in texts
    assert (tmp_path / 'run' / 'checkpoints').exists() or (tmp_path / 'runs' / 'tiny' / 'checkpoints').exists()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == 'code')
