"""The notebooks of examples/ run from top to bottom, warnings being errors, and what they keep is of their code.

They are trained for few steps here: what they say of scores is read from what was kept, and expected responses are
above their floors by linear drafts alone.
"""

import re
import runpy
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat, nbclient and ipykernel (the extra 'dev')")
pytest.importorskip("nbclient", reason="needs nbformat, nbclient and ipykernel (the extra 'dev')")
pytest.importorskip("nilearn", reason="needs nilearn (the extra 'cortex')")

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("laptop_tour", "own_data")
# What each kernel is told first: warnings are errors, but for ipykernel's about itself; fewer steps and resamples.
FIRST = """
import functools, warnings
from brainjanus import run as module
from brainjanus.recipes import fitting

warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")
FEW = {"training.optim.steps": 8, "image_training.steps": 8, "brain_training.steps": 8}
whole = module.train
module.train = lambda dataset, out, config=None, **more: whole(
    dataset, out, (config or fitting(dataset)).changed(FEW), **more
)
module.ScoreOptions = functools.partial(module.ScoreOptions, permutations=20, resamples=20)
"""
MOST_BYTES = 350_000
EXECUTE = runpy.run_path(str(ROOT / "examples/execute.py"))


def kept(name: str):
    return nbformat.read(ROOT / f"examples/{name}.ipynb", as_version=4)


def code_of(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell) -> list[str]:
    """What each output of a cell is: the name of a stream, or the forms of what is displayed."""
    return [out.get("name") or "+".join(sorted(out.data)) for out in cell.outputs]


def texts(notebook) -> list[str]:
    return [out.get("text") or out.data["text/plain"] for cell in code_of(notebook) for out in cell.outputs]


def scores_in(notebook) -> list[tuple[str, str, float, float, float]]:
    """direction, metric, floor, linear, value: of each line of each table of scores."""
    found = []
    for text in texts(notebook):
        for line in text.splitlines():
            if row := re.match(r"(\S+->\S+) +(\w+) +(\S+) +\S+ +(\S+) +(\S+) +\S+ to ", line):
                found.append((row[1], row[2], *map(float, row.groups()[2:])))
    return found


@pytest.fixture(scope="module", params=NAMES)
def ran(request, tmp_path_factory):
    """The name of a notebook, and it with the outputs of now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")  # no Java: METEOR takes longer than all the rest
        patch.setenv("PYTHONPATH", str(ROOT))
        folder = tmp_path_factory.mktemp(request.param)
        return request.param, EXECUTE["execute"](ROOT / f"examples/{request.param}.ipynb", folder, FIRST)


def test_it_runs_and_shows_what_is_kept(ran):
    name, now = ran
    assert [shown(cell) for cell in code_of(now)] == [shown(cell) for cell in code_of(kept(name))]


def test_what_it_scores_is_above_the_floor(ran):
    _, now = ran
    values = [(floor, value) for direction, metric, floor, _, value in scores_in(now) if metric == "voxel_r"]
    assert len(values) >= 2 and all(value > floor + 0.1 for floor, value in values)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_of_this_code_in_this_order(name):
    notebook = kept(name)
    cells = code_of(notebook)
    assert notebook.metadata["brainjanus"]["executed"] == EXECUTE["fingerprint"](notebook), "run `make notebooks`"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(out.output_type != "error" for cell in cells for out in cell.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_small_and_hold_no_noise(name):
    assert (ROOT / f"examples/{name}.ipynb").stat().st_size < MOST_BYTES
    for cell in code_of(kept(name)):
        for out in cell.outputs:
            if out.get("name") == "stderr":
                assert all(line.startswith("Note: ") for line in out.text.strip().splitlines())
    told = "\n".join(texts(kept(name)))
    assert not re.search(r"/(tmp|home|root|Users|work)\b|Warning|\d+/\d+,", told)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_says_that_the_model_learnt(name):
    rows = scores_in(kept(name))
    assert {direction for direction, *_ in rows} == {"brain->text", "brain->image", "image->brain", "text->brain"}
    for direction, metric, floor, linear, value in rows:
        if metric in ("content_f1", "two_way", "voxel_r"):
            assert value > floor + 0.1 and linear > floor, (direction, metric)


@pytest.mark.parametrize("name", NAMES)
def test_links_are_there(name):
    for cell in kept(name).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\(([^)\s#]+)", cell.source):
                assert (ROOT / "examples" / link).exists(), link
