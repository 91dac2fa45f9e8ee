"""Encode-then-decode can be hacked: the control is perfect at it, and the brain metrics say what it is."""

import numpy as np
import pytest

from brainjanus.evaluate.baselines import linear_baseline, linear_decoder
from brainjanus.evaluate.brain import voxel_r
from brainjanus.evaluate.control import padding_control
from brainjanus.evaluate.encode_decode import CONTROL, control_records, encode_decode_records
from brainjanus.evaluate.extras import Extras
from brainjanus.evaluate.record import Predictions
from brainjanus.evaluate.score import ScoreOptions, score

QUICK = ScoreOptions(permutations=100, resamples=20, extras=Extras(java=False))


def of(records, metric):
    (record,) = [record for record in records if record.metric == metric and record.roi is None]
    return record


def test_the_control_is_perfect_at_it_and_exposed_by_the_brain_metrics(tiny):
    records = control_records(tiny, "s1", tiny.averages("s1", "test").stimulus_ids, QUICK)
    assert of(records, "encode_decode_two_way").value == 1
    assert of(records, "encode_decode_pixcorr").value > 0.9  # 40 sites hold half of its 64 pixels
    assert abs(of(records, "voxel_r").value) < 0.15
    assert of(records, "voxel_r").p > 0.05
    assert of(records, "identification_top1").value < 0.2
    assert {record.estimator for record in records} == {CONTROL}
    assert all(record.baseline is None for record in records)


def test_what_is_scored_as_a_brain_is_the_padded_vector(tiny):
    measured = tiny.averages("s1", "test")
    padded = padding_control(tiny.images(measured.stimulus_ids), 40).responses
    record = of(control_records(tiny, "s1", measured.stimulus_ids, QUICK), "voxel_r")
    assert record.value == pytest.approx(voxel_r(measured.responses, padded).mean(), abs=1e-6)
    assert record.value != 0


def test_a_linear_encoder_is_decoded_again_beside_its_baseline(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    values = linear_baseline(tiny, "s1", "image->brain", ids)
    predictions = Predictions("image->brain", "s1", ids, "linear", values)
    restored = linear_decoder(tiny, "s1", values)
    records = encode_decode_records(tiny, predictions, restored, QUICK)
    assert [record.metric for record in records] == [f"encode_decode_{m}" for m in ("two_way", "pixcorr", "ssim")]
    for record in records:
        assert record.direction == "image->brain"
        assert record.estimator == "linear"
        assert record.value == pytest.approx(record.baseline)
        assert record.value > record.floor
    assert of(records, "encode_decode_two_way").value > 0.8


def test_decoding_the_measured_responses_is_the_linear_baseline(tiny):
    measured = tiny.averages("s1", "test")
    again = linear_decoder(tiny, "s1", measured.responses)
    assert np.allclose(again, linear_baseline(tiny, "s1", "brain->image", measured.stimulus_ids), atol=1e-3)


def test_the_padded_vector_would_pass_for_an_encoder_by_its_pictures_alone(tiny):
    """The control beats the linear encoder at encode-then-decode, and loses to it in every measure of the brain."""
    control = control_records(tiny, "s1", tiny.averages("s1", "test").stimulus_ids, QUICK)
    ids = tiny.averages("s1", "test").stimulus_ids
    linear = Predictions("image->brain", "s1", ids, "linear", linear_baseline(tiny, "s1", "image->brain", ids))
    restored = linear_decoder(tiny, "s1", linear.values)
    theirs = score(tiny, linear, QUICK).records + encode_decode_records(tiny, linear, restored, QUICK)
    for metric in ("encode_decode_two_way", "encode_decode_pixcorr"):
        assert of(control, metric).value > of(theirs, metric).value
    for metric in ("voxel_r", "voxel_r_normalised", "pattern_r", "identification_top1", "r2"):
        assert of(control, metric).value < of(theirs, metric).value - 0.1
