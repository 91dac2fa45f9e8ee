import json

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.evaluate.protocol import UNKNOWN
from brainjanus.evaluate.record import KEYS, Predictions, Record, load_scores, save_scores

RECORD = Record(
    "image->brain", "tiny", "s1", "V1", "mean", "voxel_r", 0.5, 0.0, 0.4, None, n=30, seed=1, p=0.01, null=np.zeros(4)
)


def test_records_come_back(tmp_path):
    save_scores([RECORD, RECORD], tmp_path / "scores.json")
    assert load_scores(tmp_path / "scores.json") == [RECORD, RECORD]


def test_the_file_has_exactly_the_promised_keys(tmp_path):
    save_scores([RECORD], tmp_path / "scores.json")
    promised = "direction dataset subject roi estimator metric value floor baseline ceiling n seed p"
    promised += " constant interval protocol"
    assert " ".join(json.loads((tmp_path / "scores.json").read_text())[0]) == promised == " ".join(KEYS)


ROW = {"direction": "image->brain", "dataset": "d", "subject": "s", "roi": None, "estimator": "m", "metric": "voxel_r"}
ROW |= {"value": 0.5, "floor": 0, "baseline": None, "ceiling": None, "n": 3, "seed": 0}
BROKEN = [
    {"value": "abc"},
    {"value": None},
    {"direction": "a->b"},
    {"interval": [1]},
    {"foo": 1},
    {"value": float("nan")},
]


def test_a_record_without_a_protocol_is_read(tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps([ROW]))
    assert load_scores(tmp_path)[0].protocol == UNKNOWN


@pytest.mark.parametrize(
    "content",
    ["[{", '[{"metric": "voxel_r"}]', '{"a": 1}', None, "[]", "[1]", *(json.dumps([ROW | b]) for b in BROKEN)],
)
def test_another_file_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    with pytest.raises(UserError, match=r"scores\.json: expected a JSON list of records"):
        load_scores(tmp_path / "scores.json")


BRAIN, IMAGE = np.zeros((2, 5)), np.zeros((2, 4, 4, 3))


@pytest.mark.parametrize(
    ("direction", "ids", "values", "message"),
    [
        ("image->brain", ["a", "a"], BRAIN, "2 values for 2 ids"),
        ("image->brain", ["a"], BRAIN, "2 values for 1 ids"),
        ("image->brain", ["a", "b"], IMAGE, r"expected an array \[stimuli, sites\], got shape \[2, 4, 4, 3\]"),
        ("brain->image", ["a", "b"], IMAGE[..., :1], r"height, width, 3\], got shape"),
        ("brain->text", ["a", "b"], BRAIN, "expected a list of captions"),
        ("brain->image", ["a", "b"], ["x", "y"], "got a list"),
        ("image->brain", ["a", "b"], np.array([[1.0], [np.nan]]), "got NaN or infinity for stimulus 'b'"),
    ],
)
def test_predictions_of_the_wrong_form_are_refused(direction, ids, values, message):
    with pytest.raises(UserError, match=message):
        Predictions(direction, "s1", ids, "mean", values)
