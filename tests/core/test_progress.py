"""Progress: a bar where somebody looks, a line now and then where nobody does."""

import sys

import pytest

from brainjanus.core import progress as module
from brainjanus.core.progress import progress


def test_off_a_terminal_the_end_is_told(capsys):
    with progress("train", 3) as advance:
        advance(1, 0.5)
        advance(2, 0.25)
        assert capsys.readouterr().err == ""
        advance(3, 0.125)
    assert capsys.readouterr() == ("", "train: 3/3, loss 0.125\n")


def test_off_a_terminal_a_line_comes_now_and_then(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("encode", 10) as advance:
        for done, now in ((1, 29.0), (2, 31.0), (3, 60.0), (4, 62.0)):  # noqa: B007, the clock reads it
            advance(done, None)
    assert capsys.readouterr().err == "encode: 2/10\nencode: 4/10\n"


def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("train", 4, start=1) as advance:
        advance(3, 0.5)
    shown = capsys.readouterr()
    assert "train" in shown.err and "3/4" in shown.err and "loss 0.500" in shown.err
    assert shown.out == ""


def test_what_goes_wrong_inside_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt), progress("train", 4):
        raise KeyboardInterrupt
