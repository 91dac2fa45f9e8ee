"""Predictions of an evaluation under way: read back as they were, made again where they are another's or damaged."""

from contextlib import suppress

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.evaluate import kept as module
from brainjanus.evaluate.kept import FOLDER, kept
from brainjanus.evaluate.record import Predictions

FACTS = {"run": [["model.json", 3, 4]], "seed": 0, "software": {"torch": "2"}, "vision network": None}
NUMBERS = Predictions("image->brain", "s1", ("x", "y"), "mean", np.arange(6, dtype=np.float32).reshape(2, 3) / 7)
CAPTIONS = Predictions("brain->text", "s1", ("x", "y"), "greedy", ["a cat", "a dög"])


def never() -> Predictions:
    pytest.fail("predicted again")


def stopped(out, made_by=FACTS, made=NUMBERS) -> None:
    """An evaluation that ends after one prediction."""
    with suppress(KeyboardInterrupt), kept(out, made_by) as found:
        found.of("one", lambda: made)
        raise KeyboardInterrupt


@pytest.mark.parametrize("made", [NUMBERS, CAPTIONS], ids=["numbers", "captions"])
def test_what_was_predicted_is_read_back_and_removed_in_the_end(tmp_path, made, capsys):
    stopped(tmp_path, made=made)
    with kept(tmp_path, FACTS) as predictions:
        found = predictions.of("one", never)
    assert (found.direction, found.subject, list(found.stimulus_ids), found.estimator, found.repeats) == (
        made.direction, made.subject, list(made.stimulus_ids), made.estimator, made.repeats,
    )  # fmt: skip
    np.testing.assert_array_equal(found.values, made.values)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().err


def test_many_numbers_are_not_held_in_memory(tmp_path, monkeypatch):
    with kept(tmp_path, FACTS) as predictions:
        assert not isinstance(predictions.of("few", lambda: NUMBERS).values, np.memmap)
        monkeypatch.setattr(module, "LARGE_BYTES", 8)
        found = predictions.of("many", lambda: NUMBERS)
        assert isinstance(found.values, np.memmap) and found.values.dtype == np.float32
    np.testing.assert_array_equal(found.values, NUMBERS.values)  # in use, they stay


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        ({"seed": 1}, "seed"),
        ({"run": [["model.json", 3, 5]], "seed": 2}, "run, seed"),
        ({"extensions": {}}, "extensions"),
    ],
)
def test_those_that_something_else_decided_are_removed_and_told_of(tmp_path, other, differing, capsys):
    stopped(tmp_path)
    stopped(tmp_path, FACTS | other, CAPTIONS)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"is removed, as this one has another {differing}." in err
    with kept(tmp_path, FACTS | other) as predictions:
        assert predictions.of("one", never).direction == "brain->text"


def test_those_that_cannot_be_removed_are_not_taken_for_ones_own(tmp_path, monkeypatch):
    stopped(tmp_path)

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(UserError, match=r"\.predictions: expected a place that can be written to"):
        stopped(tmp_path, FACTS | {"seed": 1})


@pytest.mark.parametrize("file", ["one.npy", "one.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_damaged_ones_are_made_again(tmp_path, file, content):
    stopped(tmp_path)
    if content is None:
        (tmp_path / FOLDER / file).unlink()
    else:
        (tmp_path / FOLDER / file).write_bytes(content)
    calls = []
    with kept(tmp_path, FACTS) as predictions:
        found = predictions.of("one", lambda: calls.append(1) or NUMBERS)
    assert calls == [1]
    np.testing.assert_array_equal(found.values, NUMBERS.values)


def test_one_evaluation_at_a_time(tmp_path):
    with kept(tmp_path, FACTS) as predictions:
        predictions.of("one", lambda: NUMBERS)
        for made_by in (FACTS, FACTS | {"seed": 1}):
            with (
                pytest.raises(UserError, match="expected a folder that nobody else writes to"),
                kept(tmp_path, made_by),
            ):
                pass
        assert predictions.of("one", never) is not None


def test_where_it_cannot_be_written_is_told(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="expected a place that can be written to"), kept(tmp_path / "out", FACTS):
        pass
