"""Every notebook runs from top to bottom, on the demonstration voice or at tiny sizes, and shows what it is for."""

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
import soundfile
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"

pytestmark = pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries


def run(name: str, folder: Path, *changes: tuple[str, str]) -> list[nbformat.NotebookNode]:
    """Executes a notebook in `folder`, and gives all outputs.

    Args:
        changes: texts of its code that are replaced first; each must be there.
    """
    notebook = nbformat.read(FOLDER / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code), "Outputs are to be stripped before a notebook is committed."
    for old, new in changes:
        (cell,) = [cell for cell in code if old in cell.source]
        cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return [output for cell in code for output in cell.outputs]


def shown(outputs: list[nbformat.NotebookNode], kind: str) -> list[str]:
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def printed(outputs: list[nbformat.NotebookNode]) -> str:
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def check_heard(outputs: list[nbformat.NotebookNode], count: int) -> None:
    """There are so many recordings, and something is heard in each."""
    players = [html for html in shown(outputs, "text/html") if "<audio" in html]
    assert len(players) == count
    for html in players:
        (data,) = re.findall(r'src="data:audio/x?-?wav;base64,([^"]+)"', html)
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert rate == 44_100
        assert len(samples) > rate / 2
        assert samples.std() > 0.01


def test_quickstart(tmp_path: Path):
    outputs = run("quickstart.ipynb", tmp_path)
    check_heard(outputs, 4)
    assert len(shown(outputs, "image/png")) == 1
    assert re.search(r"first sound after \d+\.\d\d s; \d+\.\d s of speech in \d+\.\d s", printed(outputs))
    assert soundfile.info(tmp_path / "dialogue.wav").duration > 1


def test_parity(tmp_path: Path):
    outputs = run("parity.ipynb", tmp_path, ("SMALL = False", "SMALL = True"))
    (table,) = shown(outputs, "text/markdown")
    assert table in printed(outputs)
    values = dict(re.findall(r"^\| (.+?) \| (.+) \|$", table, flags=re.MULTILINE))
    for what in (
        "logits, 2 x 96 rows: max difference / deviation",
        "greedy tokens, 20 frames: that differ",
        "DAC decode, 260 frames: max difference / peak",
        "dia_jax float32, batch 1: ms a step",
        "dia_jax float32, batch 1: first sound of a stream, s",
        "dia_jax float32, batch 1: seconds of audio a second",
        "transformers float32 beside dia_jax float32, batch 1: ms a step",
    ):
        assert re.match(r"\d", values[what]), what
    assert "over the limit" not in table


def test_finetune(tmp_path: Path):
    outputs = run("finetune.ipynb", tmp_path)
    check_heard(outputs, 5)
    assert len(shown(outputs, "image/png")) == 1
    assert "refused: 0.wav" in printed(outputs)
