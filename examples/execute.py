"""Run the notebooks of this folder from top to bottom and keep what they show: `make notebooks`.

Each gets a new kernel and an empty folder to write into. What changes from run to run and nobody reads is left out:
times, numbers of kernels, lines of progress that are gone.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TIMEOUT_SEC = 1200  # of a cell


def execute(notebook: Path, folder: Path, before: str = "") -> nbformat.NotebookNode:
    """The notebook with its outputs, run in `folder`. before: code that is run first, and not kept.

    Raises CellExecutionError, with what Python said, for the first cell that fails.
    """
    read = nbformat.read(notebook, as_version=4)
    code = fingerprint(read)
    first = nbformat.v4.new_code_cell(before)
    read.cells.insert(0, first)
    client = NotebookClient(read, timeout=TIMEOUT_SEC, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(folder))
    read.cells.remove(first)
    number = 0
    for cell in read.cells:
        if cell.cell_type != "code":
            continue
        number += 1
        cell.execution_count = number
        cell.outputs = [out for out in cell.outputs if set(out.get("data", {"": 1}).values()) != {""}]
        for out in cell.outputs:
            if "execution_count" in out:
                out.execution_count = number
            out.pop("transient", None)
    read.metadata = {
        "brainjanus": {"executed": code},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return read


def fingerprint(notebook: nbformat.NotebookNode) -> str:
    """Of the code, in its order: outputs are of the code that has the fingerprint beside them."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def main() -> None:
    here = Path(__file__).parent
    for notebook in [Path(name) for name in sys.argv[1:]] or sorted(here.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(notebook, Path(folder)), notebook)
        print(f"{notebook.name}: {notebook.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
