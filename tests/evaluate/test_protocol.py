from dataclasses import asdict, replace

import numpy as np
import pytest

from brainjanus.evaluate.protocol import (
    COMPARED,
    UNDECLARED,
    Protocol,
    differences,
    hash_of_captions,
    hash_of_ids,
    software,
)
from brainjanus.evaluate.record import Predictions, load_scores, save_scores
from brainjanus.evaluate.score import ScoreOptions, score

FULL = Protocol(
    "f" * 64, "r" * 64, "s1", "test", "abc", "z-scored", "mean of 3 repeats", "r", {"floor": "shuffles"}, {"torch": "2"}
)


def test_ids_and_captions_have_one_name_whatever_their_order():
    assert hash_of_ids(["b", "a"]) == hash_of_ids(["a", "b"]) != hash_of_ids(["a", "c"])
    one, other = {"1": ["x", "y"], "2": ["z"]}, {"2": ("z",), "1": ("x", "y")}
    assert hash_of_captions(one) == hash_of_captions(other)
    assert hash_of_captions(one) != hash_of_captions({"1": ["y", "x"], "2": ["z"]})  # the first is the human ceiling


@pytest.mark.parametrize("name", COMPARED)
def test_each_compared_field_makes_a_difference(name):
    other = replace(FULL, **{name: "other"})
    assert differences(FULL, other) == {name: (getattr(FULL, name), "other")}
    assert other.id != FULL.id


def test_what_is_undeclared_or_beside_makes_none():
    assert differences(FULL, replace(FULL, repeats=UNDECLARED)) == {}
    same = replace(FULL, beside={}, software={"torch": "3"})
    assert differences(FULL, same) == {}
    assert same.id == FULL.id


def test_every_record_carries_its_protocol(tiny, tmp_path):
    averages = tiny.averages("s1", "test")
    values = averages.responses + np.random.default_rng(0).standard_normal(averages.responses.shape).astype(np.float32)
    predictions = Predictions("image->brain", "s1", averages.stimulus_ids, "mean", values)
    save_scores(score(tiny, predictions, ScoreOptions(resamples=20)).records, tmp_path / "scores.json")
    for record in load_scores(tmp_path / "scores.json"):
        protocol = record.protocol
        assert protocol.fingerprint == tiny.fingerprint
        assert (protocol.split, protocol.stimuli) == ("test", hash_of_ids(averages.stimulus_ids))
        assert protocol.responses == "fMRI (simulated), z-scored per site with training trials"
        assert protocol.repeats == "mean of 3 repeats"
        assert len(protocol.definition) > 10
        assert protocol.software == software()
        assert ("floor" in protocol.beside) == (record.floor is not None)
        assert not [name for name, value in asdict(protocol).items() if value in (UNDECLARED, "", {})]


def test_scoring_half_of_the_stimuli_is_another_protocol(tiny):
    averages = tiny.averages("s1", "test")
    whole = Predictions("image->brain", "s1", averages.stimulus_ids, "mean", averages.responses)
    half = replace(whole, stimulus_ids=whole.stimulus_ids[::2], values=whole.values[::2])
    first, second = (
        score(tiny, p, ScoreOptions(baseline=False, resamples=0)).records[0].protocol for p in (whole, half)
    )
    assert differences(first, second).keys() == {"stimuli", "references"}
