"""Progress: a bar where somebody looks, a line now and then where nobody does."""

import sys
from types import SimpleNamespace

import pytest

from brainjanus.core import progress as module
from brainjanus.core.progress import duration, progress


def test_off_a_terminal_the_end_is_told(capsys):
    with progress("train", 3) as advance:
        advance(1, "loss 0.500")
        advance(2)
        assert capsys.readouterr().err == ""
        advance(3, "loss 0.125, image 2.00")
    assert capsys.readouterr() == ("", "train: 3/3, loss 0.125, image 2.00\n")


def test_off_a_terminal_a_line_comes_now_and_then(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("encode", 10) as advance:
        for done, now in ((1, 29.0), (2, 31.0), (3, 60.0), (4, 62.0)):  # noqa: B007, the clock reads it
            advance(done, "loss 1" if done > 3 else None)
    assert capsys.readouterr().err == "encode: 2/10, 2 min left\nencode: 4/10, loss 1, 2 min left\n"


def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("train", 4, start=1) as advance:
        advance(3, "loss 0.500")
    shown = capsys.readouterr()
    assert "train" in shown.err and "3/4" in shown.err and "loss 0.500" in shown.err
    assert shown.out == ""


def test_what_goes_wrong_inside_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt), progress("train", 4):
        raise KeyboardInterrupt


def test_of_several_processes_the_first_alone_speaks(capsys, monkeypatch):
    monkeypatch.setattr(module, "is_first", lambda: False)
    with progress("train", 1) as advance:
        advance(1, "loss 0.5")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (45.4, "45 s"),
        (89.0, "89 s"),
        (150.0, "2 min"),
        (5940.0, "99 min"),
        (6000.0, "1 h 40 min"),
        (12000, "3 h 20 min"),
    ],
)
def test_times_are_said_as_people_do(seconds, said):
    assert duration(float(seconds)) == said


@pytest.fixture
def notebook(monkeypatch) -> list[str]:
    """A kernel that keeps what its cell shows: the line as it stood, again and again."""
    states: list[str] = []

    def show(data: dict, **_) -> SimpleNamespace:
        states.append(data["text/plain"])
        return SimpleNamespace(update=show)

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=show))
    return states


def test_in_a_notebook_one_line_is_written_over_and_gone_at_the_end(notebook, capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("train", 9) as advance:
        for done, now in ((1, 0.1), (2, 0.6), (3, 0.7), (9, 2.0)):  # noqa: B007, the clock reads it
            advance(done, "loss 1.5" if done == 9 else None)
    assert notebook == ["train: 2/9", "train: 9/9, loss 1.5", ""]
    assert capsys.readouterr() == ("", "")


def test_in_a_notebook_short_work_shows_nothing(notebook, monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
    with progress("train", 1) as advance:
        advance(1)
    assert notebook == []


def test_in_a_notebook_the_line_is_gone_where_work_fails(notebook, monkeypatch):
    times = iter((0.0, 1.0))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))

    def interrupted() -> None:
        with progress("train", 2) as advance:
            advance(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert notebook == ["train: 1/2", ""]


def test_ipython_on_a_terminal_is_no_notebook(notebook, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=SimpleNamespace))
    assert not module.in_notebook()
