"""Predictions of an evaluation under way: read back as they were, made again where they are another's or damaged."""

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.evaluate.kept import FOLDER, Kept
from brainjanus.evaluate.record import Predictions

FACTS = {"run": "a", "seed": 0}
NUMBERS = Predictions("image->brain", "s1", ("x", "y"), "mean", np.arange(6, dtype=np.float32).reshape(2, 3) / 7)
CAPTIONS = Predictions("brain->text", "s1", ("x", "y"), "greedy", ["a cat", "a dög"])


def never() -> Predictions:
    pytest.fail("predicted again")


@pytest.mark.parametrize("made", [NUMBERS, CAPTIONS], ids=["numbers", "captions"])
def test_what_was_predicted_is_read_back(tmp_path, made):
    Kept(tmp_path, FACTS).of("one", lambda: made)
    found = Kept(tmp_path, FACTS).of("one", never)
    assert (found.direction, found.subject, list(found.stimulus_ids), found.estimator, found.repeats) == (
        made.direction, made.subject, list(made.stimulus_ids), made.estimator, made.repeats,
    )  # fmt: skip
    np.testing.assert_array_equal(found.values, made.values)


def test_numbers_are_not_held_in_memory(tmp_path):
    found = Kept(tmp_path, FACTS).of("one", lambda: NUMBERS)
    assert isinstance(found.values, np.memmap) and found.values.dtype == np.float32


@pytest.mark.parametrize("other", [FACTS | {"seed": 1}, FACTS | {"run": "b"}])
def test_those_of_another_run_or_seed_are_removed(tmp_path, other):
    Kept(tmp_path, FACTS).of("one", lambda: NUMBERS)
    kept = Kept(tmp_path, other)
    assert not (tmp_path / FOLDER).exists()
    assert kept.of("one", lambda: CAPTIONS).direction == "brain->text"
    assert Kept(tmp_path, other).of("one", never).direction == "brain->text"


@pytest.mark.parametrize("file", ["one.npy", "one.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_damaged_ones_are_made_again(tmp_path, file, content):
    Kept(tmp_path, FACTS).of("one", lambda: NUMBERS)
    if content is None:
        (tmp_path / FOLDER / file).unlink()
    else:
        (tmp_path / FOLDER / file).write_bytes(content)
    calls = []
    found = Kept(tmp_path, FACTS).of("one", lambda: calls.append(1) or NUMBERS)
    assert calls == [1]
    np.testing.assert_array_equal(found.values, NUMBERS.values)


def test_where_it_cannot_be_written_is_told(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="expected a place that can be written to"):
        Kept(tmp_path / "out", FACTS).of("one", lambda: CAPTIONS)
