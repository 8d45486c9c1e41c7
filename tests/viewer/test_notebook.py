"""The notebook runs from top to bottom in a real kernel and is committed with its outputs."""

import base64
import io
import json
import os
import re

import nbformat
import numpy as np
import pytest
from command_line import REPOSITORY
from nbclient import NotebookClient
from PIL import Image

FILE = REPOSITORY / "notebooks/inspect_cache.ipynb"
MISTAKE = "open_cache('nowhere.zarr')"


def cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    return "".join(out.text for cell in cells(notebook) for out in cell.outputs if out.output_type == "stream")


def shown(notebook, kind):
    """The data of one MIME type that cells show, in order."""
    return [out.data[kind] for cell in cells(notebook) for out in cell.outputs if kind in out.get("data", {})]


def html(notebook):
    return shown(notebook, "text/html")


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(FILE, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after a kernel ran it in an empty folder, followed by a cell with a user's mistake."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(FILE, as_version=4)
    for cell in cells(notebook):
        cell.outputs = []
    mistake = nbformat.v4.new_code_cell(MISTAKE, metadata={"tags": ["raises-exception"]})
    notebook.cells.append(mistake)
    paths = (str(REPOSITORY), os.environ.get("PYTHONPATH", ""))
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "IPYTHONDIR": str(folder / "ipython"),  # no start-up files of the user
        "OMP_NUM_THREADS": "1",
    }
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | environment)
    return folder, notebook


@pytest.mark.slow
def test_notebook_runs_in_a_real_kernel_and_creates_its_cache(executed):
    folder, notebook = executed
    assert [cell.execution_count for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    assert (folder / "runs/inspect/scenes.zarr/zarr.json").is_file()
    assert [path.name for path in folder.iterdir() if path.name != "ipython"] == ["runs"]


@pytest.mark.slow
def test_notebook_clustering_matches_the_cache(executed):
    assert "equal to the stored masks: True" in printed(executed[1])


@pytest.mark.slow
def test_notebook_outputs_match_the_committed_ones(executed, committed):
    def titles(notebook):
        """Titles of panels and headers of tables without numbers, which another processor may round differently."""
        found = [re.findall(r'alt="([^"]*)"|<th[^>]*>([^<]*)', text) for text in html(notebook)[:-1]]
        return [[re.sub(r"[\d.]+", "", title or head) for title, head in part] for part in found]

    assert len(titles(committed)) > 8
    assert titles(executed[1]) == titles(committed)


@pytest.mark.slow
def test_matplotlib_and_supervision_draw_a_picture_each(executed, committed):
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in shown(executed[1], "image/png")]
    assert len(pictures) == len(shown(committed, "image/png")) == 2
    assert all(len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20 for picture in pictures)
    count = re.search(r"(\d+) masks of ([\d ]+) pixels", printed(executed[1]))
    assert len(count[2].split()) == int(count[1]) > 1


@pytest.mark.slow
def test_notebook_errors_are_one_line(executed):
    (error,) = cells(executed[1])[-1].outputs
    assert error.ename == "UserError"
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in error.traceback] == [
        "error: nowhere.zarr: no such cache; run `precompute` first or pass --cache PATH"
    ]


def test_committed_outputs_are_small_and_free_of_local_paths(committed):
    assert FILE.stat().st_size < 600_000
    text = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", FILE.read_text())
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/", text)
    assert "<script" not in "".join(html(committed))
    assert all(cell.execution_count for cell in cells(committed))
    assert "error" not in [out.output_type for cell in cells(committed) for out in cell.outputs]
    assert "stderr" not in [out.get("name") for cell in cells(committed) for out in cell.outputs]


def test_notebook_kernel_is_not_pinned(committed):
    assert committed.metadata.kernelspec.name == "python3"
    assert not re.search(r'"version": "3', json.dumps(committed.metadata))
