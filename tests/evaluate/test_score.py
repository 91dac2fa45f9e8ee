from dataclasses import replace

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.evaluate import figures
from brainjanus.evaluate.baselines import constant_prediction, linear_baseline, linear_captions
from brainjanus.evaluate.brain import pattern_r, voxel_r
from brainjanus.evaluate.captions import CAPTION_METRICS
from brainjanus.evaluate.extras import Extras
from brainjanus.evaluate.figures import Draws
from brainjanus.evaluate.metrics import metric_of
from brainjanus.evaluate.record import Predictions
from brainjanus.evaluate.reference import Reference
from brainjanus.evaluate.score import ScoreOptions, score_against, summary
from brainjanus.evaluate.score import score as score_predictions
from brainjanus.evaluate.topography import Spins, spatial_autocorrelation

RNG = np.random.default_rng(0)


def score(dataset, predictions, **options):
    options = {"extras": Extras(java=False)} | options
    return score_predictions(dataset, predictions, ScoreOptions(**options)).records


def encoded(tiny, subject="s1", noise=1.0, seed=0):
    averages = tiny.averages(subject, "test")
    added = noise * np.random.default_rng(seed).standard_normal(averages.responses.shape)
    values = (averages.responses + added).astype(np.float32)
    return Predictions("image->brain", subject, averages.stimulus_ids, "mean", values)


def of(records, metric, roi=None):
    (record,) = [record for record in records if record.metric == metric and record.roi == roi]
    return record


def test_brain_scores_are_those_of_the_metrics(tiny):
    predictions = encoded(tiny)
    measured = tiny.averages("s1", "test").responses
    records = score(tiny, predictions, baseline=False)
    per_site = voxel_r(measured, predictions.values)
    roi = tiny.space("s1").rois["V1"]
    assert of(records, "voxel_r").value == pytest.approx(per_site.mean())
    assert of(records, "voxel_r", "V1").value == pytest.approx(per_site[roi].mean())
    assert of(records, "pattern_r").value == pytest.approx(pattern_r(measured, predictions.values).mean())
    ceiling = tiny.space("s1").noise_ceiling(3)
    assert of(records, "voxel_r").ceiling == pytest.approx(ceiling.mean(), rel=1e-5)
    kept = ceiling >= 0.1
    assert of(records, "voxel_r_normalised").value == pytest.approx((per_site[kept] / ceiling[kept]).mean(), rel=1e-5)


def test_the_order_of_predictions_does_not_matter(tiny):
    predictions = encoded(tiny)
    order = RNG.permutation(len(predictions.stimulus_ids))
    other = replace(
        predictions, stimulus_ids=[predictions.stimulus_ids[i] for i in order], values=predictions.values[order]
    )
    assert score(tiny, predictions, baseline=False) == score(tiny, other, baseline=False)


def test_a_shuffled_model_is_at_the_floor(tiny):
    predictions = encoded(tiny)
    wrong = replace(predictions, values=np.roll(predictions.values, 1, axis=0))
    record = of(score(tiny, wrong, baseline=False), "voxel_r")
    assert record.floor == 0
    assert abs(record.value) < 0.15
    assert record.p > 0.05
    good = of(score(tiny, predictions, baseline=False, permutations=500), "voxel_r")
    assert good.p == pytest.approx(1 / 501)


def test_the_p_value_counts_shuffles_that_do_as_well(tiny):
    record = of(score(tiny, encoded(tiny, noise=25.0), baseline=False, permutations=300), "voxel_r")
    assert 1 / 301 < record.p < 1
    assert record.p == pytest.approx((1 + (record.null >= record.value).sum()) / 301)
    assert record.null.mean() == pytest.approx(record.floor, abs=0.01)


def test_a_low_rank_counts_as_good(tiny):
    record = of(score(tiny, encoded(tiny, noise=0.2), baseline=False), "identification_rank")
    assert record.value == 1
    assert record.p < 0.01
    assert record.floor == pytest.approx((30 + 1) / 2)


def test_seed_gives_the_same_records(tiny):
    first, second = (score(tiny, encoded(tiny), baseline=False, seed=4) for _ in range(2))
    assert first == second
    assert (first[0].null == second[0].null).all()


def test_the_linear_baseline_scores_as_itself(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    for direction in ("image->brain", "text->brain", "brain->image", "brain->text"):
        values = linear_baseline(tiny, "s1", direction, ids)
        for record in score(tiny, Predictions(direction, "s1", ids, "linear", values), resamples=10):
            if record.metric not in (*CAPTION_METRICS, "autocorrelation_measured"):
                assert record.value == pytest.approx(record.baseline), record.metric
    sentences = Predictions("brain->text", "s1", ids, "linear", linear_captions(tiny, "s1", ids))
    for record in score(tiny, sentences, resamples=10):
        if record.metric in CAPTION_METRICS:
            assert record.value == pytest.approx(record.baseline), record.metric


def test_the_constant_prediction_scores_as_itself(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    for direction in ("image->brain", "brain->image", "brain->text"):
        one = constant_prediction(tiny, "s1", direction)
        values = [one] * len(ids) if isinstance(one, str) else np.stack([one] * len(ids))
        for record in score(tiny, Predictions(direction, "s1", ids, "constant", values), resamples=10):
            if record.metric == "autocorrelation_measured":
                continue
            assert record.value == pytest.approx(record.constant), record.metric
            if record.floor is not None:  # it says the same of every stimulus
                assert record.value == pytest.approx(record.floor), record.metric


def test_the_constant_prediction_is_that_of_training_alone(tiny):
    assert np.allclose(constant_prediction(tiny, "s1", "image->brain"), tiny.averages("s1", "train").responses.mean(0))
    train = {caption for i in tiny.averages("s1", "train").stimulus_ids for caption in tiny.captions(i)}
    assert constant_prediction(tiny, "s1", "brain->text") in train


def test_the_interval_holds_the_value_and_narrows_with_more_stimuli(tiny):
    whole = encoded(tiny, noise=8.0)
    half = replace(whole, stimulus_ids=whole.stimulus_ids[::3], values=whole.values[::3])
    widths = []
    for predictions in (whole, half):
        for record in score(tiny, predictions, baseline=False):
            low, high = record.interval
            assert low <= record.value + 0.02 and record.value - 0.02 <= high, record.metric
        widths.append(np.ptp(of(score(tiny, predictions, baseline=False), "pattern_r").interval))
    assert widths[0] < widths[1]


def test_the_interval_of_pattern_r_is_that_of_a_mean(tiny):
    predictions = encoded(tiny, noise=8.0)
    record = of(score(tiny, predictions, baseline=False, resamples=4000), "pattern_r")
    samples = pattern_r(tiny.averages("s1", "test").responses, predictions.values)
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    assert np.ptp(record.interval) == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_error_and_explained_variance_have_their_ceilings(tiny):
    records = score(tiny, encoded(tiny), baseline=False, resamples=10)
    ceiling = tiny.space("s1").noise_ceiling(3)
    assert of(records, "r2").ceiling == pytest.approx((ceiling**2).mean(), rel=1e-5)
    assert of(records, "mse").ceiling == pytest.approx(tiny.space("s1").noise_variance.mean() / 3, rel=1e-5)
    assert of(records, "mse").p == pytest.approx(1 / 1001)  # lower is better, and that is known


def test_brain_correlation_has_the_seen_pictures_as_ceiling(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    seen = Predictions("brain->image", "s1", ids, "seen", tiny.images(ids))
    record = of(score(tiny, seen, baseline=False, resamples=10), "brain_correlation")
    assert record.value == pytest.approx(record.ceiling, abs=1e-5)
    assert record.value > record.floor + 0.2
    assert of(score(tiny, seen, baseline=False, resamples=10), "brain_correlation", "V1").n == 30


def test_supplied_features_are_scored_by_name(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    features = np.random.default_rng(0).standard_normal((30, 2, 4))
    extras = Extras(features={"mine": features}, seen_features={"mine": features})
    predictions = Predictions("brain->image", "s1", ids, "mean", tiny.images(ids))
    records = score(tiny, predictions, baseline=False, resamples=10, extras=extras)
    assert of(records, "features:mine").value == 1
    for way in ("decoded->seen", "seen->decoded"):
        assert of(records, f"retrieval:mine {way}").value == 1
        assert of(records, f"retrieval:mine {way}").floor == pytest.approx(1 / 30)


def test_what_cannot_be_scored_says_why(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    pictures = score_predictions(
        tiny, Predictions("brain->image", "s1", ids, "mean", tiny.images(ids)), ScoreOptions(baseline=False)
    )
    assert "--weights" in pictures.skipped["alexnet2"]
    assert pictures.skipped.keys() == {"alexnet2", "alexnet5", "inception", "clip", "effnet", "swav"}
    captions = Predictions("brain->text", "s1", ids, "greedy", [tiny.captions(i)[0] for i in ids])
    skipped = score_predictions(tiny, captions, ScoreOptions(baseline=False, extras=Extras(java=False))).skipped
    assert {"meteor", "spice", "bertscore", "clip_s", "ref_clip_s"} <= skipped.keys()


def test_right_captions_and_pictures_score_one(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    records = score(tiny, Predictions("brain->text", "s1", ids, "greedy", [tiny.captions(i)[1] for i in ids]))
    text = of(records, "content_f1")
    assert text.value == 1
    assert 0 < text.floor < text.baseline < 1
    assert 0 < text.ceiling < 1
    image = score(tiny, Predictions("brain->image", "s1", ids, "mean", tiny.images(ids)), baseline=False)
    assert of(image, "pixcorr").value == pytest.approx(1)
    assert of(image, "two_way").value == 1
    assert of(image, "two_way").floor == pytest.approx(0.5)
    assert of(image, "two_way").ceiling is None


def test_several_pictures_score_their_mean(blocks):
    ids = blocks.averages("s1", "test").stimulus_ids
    found = [
        of(score(blocks, Predictions("brain->image", "s1", ids, "mean", values), baseline=False), "pixcorr").value
        for values in (np.stack([blocks.pictures(i)[k] for i in ids]) for k in range(3))
    ]
    assert all(0.9 < value < 1 for value in found)  # like one of them exactly, like the others almost


def test_the_mean_over_subjects_has_a_joint_p_value(tiny):
    records = score(tiny, encoded(tiny, "s1", 12.0), baseline=False, seed=2)
    records += score(tiny, encoded(tiny, "s2", 12.0, seed=1), baseline=False, seed=2)
    mean = of(summary(records), "voxel_r")
    each = [record for record in records if record.metric == "voxel_r" and record.roi is None]
    assert mean.subject == "mean"
    assert mean.n == 60
    assert mean.value == pytest.approx(np.mean([record.value for record in each]))
    joint = (each[0].null + each[1].null) / 2
    assert mean.p == pytest.approx((1 + (joint >= mean.value).sum()) / 1001)
    assert mean.baseline is None
    assert of(summary([replace(record, null=None) for record in records]), "voxel_r").p is None


def test_folds_are_averaged_under_one_name(tiny):
    records = score(tiny, encoded(tiny), baseline=False)
    folds = [replace(record, dataset=f"fold{i}", value=record.value + i) for i in range(3) for record in records]
    assert of(summary(folds, dataset="all folds"), "voxel_r").value == pytest.approx(of(records, "voxel_r").value + 1)
    assert len(summary(folds)) == 3 * len(summary(folds, dataset="all folds"))


def test_training_stimuli_are_refused(tiny):
    train = tiny.averages("s1", "train")
    with pytest.raises(UserError, match="expected stimuli of the test split, got 'im0000'"):
        score(tiny, Predictions("image->brain", "s1", train.stimulus_ids, "mean", train.responses))


def test_one_stimulus_is_refused(tiny):
    predictions = encoded(tiny)
    with pytest.raises(UserError, match="at least 2 stimuli, got 1"):
        score(tiny, Predictions("image->brain", "s1", predictions.stimulus_ids[:1], "mean", predictions.values[:1]))


def test_another_number_of_sites_is_refused(tiny):
    predictions = encoded(tiny)
    with pytest.raises(UserError, match="expected 40 sites, got 39"):
        score(tiny, replace(predictions, values=predictions.values[:, 1:]))


def test_shuffles_and_resamples_may_be_left_out(tiny):
    record = of(score(tiny, encoded(tiny), baseline=False, permutations=0, resamples=0), "voxel_r")
    assert record.p is None and record.interval is None
    with pytest.raises(UserError, match="--permutations: expected 0 or more, got -1"):
        ScoreOptions(permutations=-1)


def test_the_floor_does_not_depend_on_how_many_shuffles_and_resamples_there_are(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    said = Predictions("brain->text", "s1", ids, "greedy", [tiny.captions(i)[0] for i in ids])
    one, other = (score(tiny, said, baseline=False, permutations=n, resamples=n) for n in (3, 40))
    assert of(one, "bleu1").floor == of(other, "bleu1").floor
    assert of(one, "bleu1").floor < of(one, "bleu1").value


def test_an_interval_stays_within_what_a_metric_can_be(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    said = [tiny.captions(i)[0] for i in ids]
    for values in (said, [*said[:-1], "nothing"], ["nothing"] * 29 + said[-1:]):
        for record in score(tiny, Predictions("brain->text", "s1", ids, "greedy", values), baseline=False):
            least, most = metric_of(record.metric).bounds
            assert least <= record.interval[0] <= record.value <= record.interval[1] <= most, record.metric


def test_the_floor_of_ssim_is_that_of_shuffled_pictures(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    record = of(score(tiny, Predictions("brain->image", "s1", ids, "mean", tiny.images(ids)), baseline=False), "ssim")
    assert record.value == pytest.approx(1)
    assert record.floor < 0.9


def test_the_reference_of_brain_correlation_is_the_seen_picture(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    noise = np.random.default_rng(0).integers(0, 256, tiny.images(ids).shape).astype(np.uint8)
    record = of(score(tiny, Predictions("brain->image", "s1", ids, "mean", noise), baseline=False), "brain_correlation")
    assert record.ceiling > record.value + 0.2


def test_noise_is_that_of_the_repeats_of_each_stimulus(tiny):
    averages = tiny.averages("s1", "test")
    repeats = np.array([1, 3] * 15)
    reference = Reference(
        "t", "f", "s1", "test", averages.stimulus_ids, averages.responses, repeats, space=tiny.space("s1")
    )
    assert np.allclose(reference.noise(), tiny.space("s1").noise_variance * (1 + 1 / 3) / 2)
    assert reference.repeats() == "mean of 1 to 3 repeats"


def test_a_stimulus_is_drawn_equally_often_for_each_subject_who_saw_it():
    every = [f"im{i}" for i in range(50)]
    one, other = (Draws.of(ids, 0, 1, 200, every) for ids in (every[:40], every[10:]))
    assert np.array_equal(one.counts[:, 10:], other.counts[:, :30])
    assert np.array_equal(Draws.of(every, 0, 1, 200, every).counts.sum(axis=1), np.full(200, 50))
    lonely = Draws.of(every[:1], 0, 1, 200, every).counts
    assert (lonely > 0).all()  # a resample without the stimulus holds it once


def test_the_mean_over_subjects_has_the_protocol_of_all(tiny):
    records = score(tiny, encoded(tiny, "s1"), baseline=False) + score(tiny, encoded(tiny, "s2"), baseline=False)
    protocol = of(summary(records), "voxel_r").protocol
    assert protocol.subjects == "s1, s2"
    assert protocol.stimuli == records[0].protocol.stimuli  # they saw the same
    assert protocol.references.startswith("2 different")  # and responded differently
    alone = of(summary(score(tiny, encoded(tiny, "s1"), baseline=False)), "voxel_r")
    assert alone.protocol.subjects == "s1" and alone.p is not None


@pytest.mark.parametrize("split", ["train", "tset"])
def test_only_held_out_splits_are_scored(tiny, split):
    with pytest.raises(UserError, match=f"--split: expected val or test, got '{split}'"):
        score_predictions(tiny, encoded(tiny), split=split)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: np.tile(v[:1], (len(v), 1)), "all predictions are the same"),
        (lambda v: 10 * v, "are they in another unit"),
        (lambda v: v + 50, "are they in another unit"),
    ],
)
def test_odd_predictions_are_told(tiny, change, told):
    right = encoded(tiny)
    assert score_predictions(tiny, right, ScoreOptions(baseline=False)).warnings == []
    (warning,) = score_predictions(
        tiny, replace(right, values=change(right.values)), ScoreOptions(baseline=False)
    ).warnings
    assert told in warning


def test_overflown_predictions_are_refused(tiny):
    right = encoded(tiny)
    with pytest.raises(UserError, match=r"numbers up to .*e\+2.* overflow"):
        score(tiny, replace(right, values=right.values * np.float32(1e20)))


def test_other_references_of_the_same_stimuli_are_not_taken_for_these():
    ids = [f"im{i}" for i in range(12)]
    said = Predictions("brain->text", "s1", ids, "greedy", ["a red dog"] * 12)
    options = ScoreOptions(extras=Extras(java=False), resamples=5)
    found = []
    for colour in ("red", "blue"):
        captions = [[f"a {colour} dog runs", f"one {colour} dog {i}"] for i in range(12)]
        reference = Reference("r", "undeclared", "s1", "test", ids, captions=captions)
        records = score_against(reference, said, options).records
        found.append((of(records, "bleu1").value, of(records, "bleu1").constant, of(records, "content_f1").value))
    assert found[0][0] > found[1][0] and found[0][1] == pytest.approx(found[1][1]) and found[0][2] > found[1][2]
    single = Reference("r", "undeclared", "s1", "test", ids, captions=[[f"dog number {i}"] for i in range(12)])
    assert of(score_against(single, said, options).records, "bleu1").ceiling is None


def test_the_smoothness_of_predicted_and_of_measured_maps_stand_beside_each_other(tiny):
    predictions, space = encoded(tiny), tiny.space("s1")
    records = score(tiny, predictions, baseline=False, resamples=10)
    measured = tiny.averages("s1", "test").responses
    for name, maps in (("autocorrelation", predictions.values), ("autocorrelation_measured", measured)):
        record = of(records, name)
        assert record.value == pytest.approx(spatial_autocorrelation(space, maps).mean(), abs=1e-6)
        assert record.p is None and record.floor is None


def test_selectivity_has_the_p_value_of_the_rotations(tiny, monkeypatch):
    turned = np.stack([np.random.default_rng(i).permutation(40) for i in range(99)])
    monkeypatch.setattr(figures, "spins", lambda space, num, rng: Spins(turned, "in place of rotations"))
    monkeypatch.setattr(figures, "_rotations", {})
    records = score(tiny, encoded(tiny), baseline=False, resamples=10)
    record = of(records, "selectivity_r")
    assert record.p == 0.01
    assert record.protocol.beside["p"] == "1000 rotations of the cortex"
    assert of(summary(records), "selectivity_r").p == 0.01  # a mean over one subject is that subject
