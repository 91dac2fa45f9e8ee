import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

import brainjanus.evaluate.tokenizer as scoring
from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.evaluate.rate import PCAQuantizer, gaussian_bound
from brainjanus.evaluate.tokenizer import (
    METRICS,
    locality,
    patch_distance,
    reconstruct,
    score_tokenizer,
    training_axes,
)
from brainjanus.evaluate.tokenizer_report import code_atlas, draw_sites, sequence, write_tokenizer_report
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.conv import PaperConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig

PATCH, CODES = 4, 16


def make_tokenizer(orders, quantizer=None, patch=None):
    torch.manual_seed(0)
    quantizer = quantizer or QuantizerConfig(num_codes=CODES, dim=4)
    config = BrainTokenizerConfig(patch_size=PATCH, patch=patch or PatchConfig(8, 1, 2), quantizer=quantizer)
    orders = {name: torch.from_numpy(np.array(order)) for name, order in orders.items()}
    return BrainTokenizer(config, orders).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return solved(make_tokenizer({subject: tiny.space(subject).order for subject in tiny.subjects}), tiny)


def solved(tokenizer, dataset):
    """As it is before training."""
    for subject in tokenizer.subjects:
        means = torch.from_numpy(dataset.averages(subject, "train").responses)
        tokenizer.solve(subject, means, means[:0])
    return tokenizer


@pytest.fixture(scope="module")
def truth(tiny):
    """What would be measured with a third of the noise."""
    rng = np.random.default_rng(0)
    found = {}
    for subject in tiny.subjects:
        measured = tiny.averages(subject, "test").responses
        found[subject] = (measured + rng.standard_normal(measured.shape)).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def scores(tiny, tokenizer, truth):
    return score_tokenizer(tokenizer, tiny, truth=truth)


def test_every_figure_is_what_it_says(tiny, tokenizer, scores, truth):
    measured = tiny.averages("s1", "test").responses
    values = reconstruct(tokenizer, measured, "s1").values
    assert scores.of("mse", "s1").value == pytest.approx(np.square(measured - values).mean(), rel=1e-5)
    r = [pearsonr(measured[:, site], values[:, site]).statistic for site in range(10)]
    assert scores.of("voxel_r", "s1", "V1").value == pytest.approx(np.mean(r), abs=1e-6)
    r = [pearsonr(truth["s1"][row], values[row]).statistic for row in range(len(measured))]
    assert scores.of("pattern_r_truth", "s1").value == pytest.approx(np.mean(r), abs=1e-6)
    own = [pearsonr(truth["s1"][row], measured[row]).statistic for row in range(len(measured))]
    assert scores.of("pattern_r_truth", "s1").ceiling == pytest.approx(np.mean(own), abs=1e-6)
    assert {record.metric for record in scores.records} == METRICS.keys()
    assert {record.roi for record in scores.records} == {None, "V1", "late"}


def test_references_have_as_many_bits_and_are_fitted_to_training_responses(tiny, scores):
    train, measured = (tiny.averages("s1", split).responses for split in ("train", "test"))
    bits = tiny.space("s1").num_sites / PATCH * np.log2(CODES)
    record = scores.of("mse", "s1")
    linear = PCAQuantizer.fit(train, bits)
    assert scores.of("bits", "s1").value == bits
    assert scores.of("bits_per_site", "s1").value == bits / tiny.space("s1").num_sites
    assert record.floor == pytest.approx(np.square(measured - train.mean(axis=0)).mean(), rel=1e-5)
    assert record.baseline == pytest.approx(np.square(measured - linear.decode(linear.encode(measured))).mean())
    assert record.bound == pytest.approx(gaussian_bound(train, bits).mse)
    shrunk = gaussian_bound(train, bits, shrink=True).mse
    assert scores.of("bound_shrunk", "s1").value == pytest.approx(shrunk)
    assert scores.of("voxel_r", "s1").floor == 0


def test_the_ceiling_is_the_noise_ceiling_of_the_repeats(tiny, scores):
    space = tiny.space("s1")
    assert scores.of("voxel_r", "s1", "V1").ceiling == pytest.approx(space.noise_ceiling(3)[:10].mean())
    assert scores.of("mse", "s1").ceiling is None


def test_codes_are_counted_and_encoded_again(tiny, tokenizer, scores):
    measured = tiny.averages("s1", "test").responses
    codes, values = reconstruct(tokenizer, measured, "s1")
    again = tokenizer.encode(torch.from_numpy(values), "s1").numpy()
    assert scores.of("agreement", "s1").value == pytest.approx((codes == again).mean())
    assert scores.of("used", "s1").value == len(np.unique(codes)) / CODES
    assert (scores.usage["s1"].counts == np.bincount(codes.ravel(), minlength=CODES)).all()
    both = scores.usage["s1"].counts + scores.usage["s2"].counts
    assert scores.of("used").value == (both > 0).mean() >= scores.of("used", "s2").value


def test_locality_is_the_share_of_a_change_in_its_own_patch(tiny, tokenizer, scores):
    """Without context and with axes of its own, a code changes its patch alone; else it is what one exchange tells."""
    record = scores.of("locality", "s1")
    assert record.floor == 1 / 10 and record.floor < record.value < 1
    assert record.value == score_tokenizer(tokenizer, tiny).of("locality", "s1").value  # same seed
    measured = tiny.averages("s1", "test").responses
    order = {"s1": tiny.space("s1").order}
    bare = solved(make_tokenizer(order, patch=PatchConfig(8, depth=0, heads=2, reach="patch")), tiny)
    codes, values = reconstruct(bare, measured, "s1")
    assert locality(bare, codes, values, "s1") == pytest.approx(1, abs=1e-9)
    unsolved = make_tokenizer(order)  # whatever the codes, nothing is decoded
    assert locality(unsolved, *reconstruct(unsolved, measured, "s1"), "s1") is None


@pytest.mark.parametrize("reach", ["cortex", "patch"])
def test_axes_of_tokens_are_what_they_read(tiny, reach):
    made = solved(make_tokenizer({"s1": tiny.space("s1").order}, patch=PatchConfig(8, 1, 2, reach)), tiny)
    axes = made.token_axes("s1").numpy()
    assert axes.shape == (10, 4, 40)
    there = axes.any(axis=2)
    np.testing.assert_allclose(np.linalg.norm(axes, axis=2)[there], 1, rtol=1e-5)
    patch = made.site_patch("s1").numpy()
    inside = np.square(axes * (patch == np.arange(10)[:, None])[:, None]).sum(axis=2)[there]
    assert inside.min() == pytest.approx(1) if reach == "patch" else 0.1 < inside.mean() < 1
    values = torch.from_numpy(tiny.averages("s1", "test").responses)
    read = made.coder.map_of("s1").read(made.patches(values, "s1")).numpy()
    along = np.einsum("nv,kdv->nkd", values.numpy(), axes)
    for token, axis in np.argwhere(there):
        assert np.corrcoef(read[:, token, axis], along[:, token, axis])[0, 1] == pytest.approx(1, abs=1e-4)


def test_the_published_encoder_has_no_axes(tiny):
    config = BrainTokenizerConfig("paper", 4, paper=PaperConfig(4, (1, 1, 1), 1, 4))
    assert BrainTokenizer(config, {"s1": torch.arange(40)}).token_axes("s1") is None


def test_an_exchanged_code_of_a_stage_stays_in_its_stage(tiny):
    quantizer = QuantizerConfig("residual", num_codes=2, dim=4, stages=2)
    residual = solved(make_tokenizer({"s1": tiny.space("s1").order}, quantizer), tiny)
    torch.nn.init.normal_(residual.quantizer.codebook)
    codes, values = reconstruct(residual, tiny.averages("s1", "test").responses, "s1")
    decoded = []
    decode = residual.decode
    residual.decode = lambda exchanged, subject: decoded.append(exchanged) or decode(exchanged, subject)
    assert 0 < locality(residual, codes, values, "s1") < 1
    exchanged = torch.cat(decoded).numpy()
    assert exchanged.shape == (512, 20) and (exchanged // 2 == np.arange(20) % 2).all()
    # of two codes the other one is taken: each differs from some held-out response at one place
    assert all((codes != one).sum(axis=1).min() <= 1 for one in exchanged)


def test_axes_of_the_training_responses_are_computed_once(tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(scoring, "_kept_axes", {})
    first = training_axes(tiny, "s1")
    assert training_axes(tiny, "s1") is first and training_axes(tiny, "s2") is not first
    np.testing.assert_allclose(first.mean, tiny.averages("s1", "train").responses.mean(axis=0), atol=1e-6)
    monkeypatch.setattr(scoring, "KEPT_BYTES", first.centred.nbytes + first.vectors.nbytes)
    assert training_axes(tiny, "s1") is first  # s2, which was not asked for again, is let go
    assert list(scoring._kept_axes) == [(tiny.fingerprint, "s1")]


def test_means_are_over_subjects(scores):
    each = [scores.of("mse", subject, "V1") for subject in ("s1", "s2")]
    assert scores.of("mse", roi="V1").baseline == pytest.approx(np.mean([record.baseline for record in each]))
    assert scores.of("mse", roi="V1").n == sum(record.n for record in each)


def test_distance_within_a_patch(tiny, scores):
    line = BrainSpace("s", 4, coordinates_mm=np.array([[0, 0, 0], [10, 0, 0], [1, 0, 0], [13, 0, 0]], float))
    assert patch_distance(line, np.array([0, 1, 0, 1])) == pytest.approx((1 + 3) / 2)
    assert patch_distance(line, np.array([0, 0, 0, 1])) == pytest.approx((10 + 1 + 9) / 3)
    assert patch_distance(line, np.arange(4)) == 0
    record = scores.of("patch_mm", "s1")
    storage = np.arange(tiny.space("s1").num_sites) // PATCH
    assert record.value < record.floor == pytest.approx(patch_distance(tiny.space("s1"), storage))


def test_scores_are_saved_as_records(scores, tmp_path):
    scores.save(tmp_path / "scores.json")
    rows = json.loads((tmp_path / "scores.json").read_text())
    assert len(rows) == len(scores.records)
    assert rows[0].keys() == {"subject", "roi", "metric", "value", "floor", "baseline", "bound", "ceiling", "n"}


def test_without_coordinates_there_is_no_distance(tiny, tokenizer, monkeypatch):
    bare = replace(tiny.space("s1"), coordinates_mm=None)
    monkeypatch.setattr(type(tiny), "space", lambda self, subject: bare)
    assert score_tokenizer(tokenizer, tiny).of("patch_mm") is None
    assert score_tokenizer(tokenizer, tiny).of("mse_truth") is None


def test_what_cannot_be_scored_is_refused(tiny, tokenizer):
    with pytest.raises(UserError, match="split to score a tokenizer on: expected val or test, got 'train'"):
        score_tokenizer(tokenizer, tiny, "train")
    with pytest.raises(UserError, match=r"expected at least 2 stimuli of s1 in the val split, got 0"):
        score_tokenizer(tokenizer, tiny, "val")
    with pytest.raises(UserError, match=r"expected one of the tokenizer's subjects \(x\), got s1, s2"):
        score_tokenizer(make_tokenizer({"x": np.arange(40)}), tiny)
    with pytest.raises(UserError, match=r"truth of s1: expected shape \[30, 40\].* got \[2, 40\]"):
        score_tokenizer(tokenizer, tiny, truth={"s1": np.zeros((2, 40), np.float32)})


# --- the report -----------------------------------------------------------------------------------------------------


def test_the_atlas_is_the_mean_of_what_is_decoded(tiny, tokenizer):
    responses = tiny.averages("s1", "train").responses
    codes, decoded = reconstruct(tokenizer, responses, "s1")
    atlas = code_atlas(tokenizer, responses, "s1")
    patch = tokenizer.site_patch("s1").numpy()
    site = 7
    for code in range(CODES):
        rows = codes[:, patch[site]] == code
        if rows.any():
            expected = decoded[rows, site].mean() - decoded[:, site].mean()
            assert atlas[code, site] == pytest.approx(expected, abs=1e-5)
        else:
            assert np.isnan(atlas[code, site])
    # over all codes, weighted by use, the deviations of a site sum to 0
    counts = np.bincount(codes[:, patch[site]], minlength=CODES)
    assert np.nansum(counts * atlas[:, site]) == pytest.approx(0, abs=1e-3)


def test_codes_of_all_stages_stand_in_the_atlas(tiny):
    residual = make_tokenizer({"s1": tiny.space("s1").order}, QuantizerConfig("residual", num_codes=8, dim=4, stages=2))
    responses = tiny.averages("s1", "train").responses
    codes, decoded = reconstruct(residual, responses, "s1")
    patch, site = residual.site_patch("s1").numpy(), 7
    second = codes[:, 2 * patch[site] + 1]
    atlas = code_atlas(residual, responses, "s1")
    assert atlas.shape == (16, 40) and second.min() >= 8
    expected = decoded[second == second[0], site].mean() - decoded[:, site].mean()
    assert atlas[second[0], site] == pytest.approx(expected, abs=1e-5)
    assert score_tokenizer(residual, tiny).of("bits").value == 10 * 2 * 3


def test_sites_follow_the_tokens(tiny, tokenizer):
    space = tiny.space("s1")
    assert (sequence(tokenizer, space) == space.order).all()
    stored = make_tokenizer({"s1": np.arange(40)})
    assert (sequence(stored, space) == np.arange(40)).all()


def test_the_page_holds_everything_and_loads_nothing(tiny, tokenizer, scores, truth, tmp_path):
    spaces = {subject: tiny.space(subject) for subject in tiny.subjects}
    path = write_tokenizer_report(tmp_path, tokenizer, spaces, tiny, scores, truth=truth, config={"a": "</pre>"})
    page = path.read_text()
    sections = re.findall(r'<section id="(\w+)">', page)
    assert sections == ["kept", "regions", "places", "axes", "maps", "examples", "codes", "glossary", "config"]
    assert not re.search(r"<script|@import|https?://", page)
    assert set(re.findall(r'src="([^,]*),', page)) == {"data:image/png;base64"}
    assert f"<b>{scores.of('mse').value:.3f}</b>" in page
    assert f"<b>{scores.of('locality', 's1').value:.0%}</b> of the squared change" in page
    assert "maps are of s1" in page and "noise-free response" in page


def spaces_of_all_kinds():
    rng = np.random.default_rng(0)
    voxels = np.sort(rng.choice(1000, 24, replace=False))
    places = np.stack(np.unravel_index(voxels, (10, 10, 10)), axis=1) * 2.0
    volume = {"type": "volume", "shape": [10, 10, 10], "affine": np.diag([2.0, 2, 2, 1]).tolist()}
    surface = {"type": "surface", "template": "fsaverage5", "left_vertices": 10242}
    sensors = BrainSpace.of_sensors("s", list("abcdef"), np.arange(4) / 100, rng.standard_normal((6, 3)) * 80)
    return {
        "volume": BrainSpace("s", 24, coordinates_mm=places, geometry=volume, index=voxels),
        "surface": BrainSpace("s", 24, "vertices", coordinates_mm=places, geometry=surface, index=np.arange(24) * 40),
        "points": BrainSpace("s", 24, coordinates_mm=places),
        "strips": BrainSpace("s", 24, "neurons"),
        "sensors": sensors,
    }


@pytest.mark.parametrize("kind", ["volume", "surface", "points", "strips", "sensors"])
def test_sites_of_every_kind_are_drawn(kind):
    space = spaces_of_all_kinds()[kind]
    values = np.linspace(-1, 1, 24)
    values[3] = np.nan
    drawn = draw_sites(space, {"a": values, "b": values}, np.asarray(space.order), label="z", limits=(-1.0, 1.0))
    groups, style = {"a": np.arange(24) % 5 / 5}, {"label": "token", "limits": (0.0, 1.0)}
    tokens = draw_sites(space, groups, np.asarray(space.order), categorical=True, **style)
    assert drawn.startswith('<img class="map" alt="a, b" src="data:image/png;base64,')
    assert tokens.startswith('<img class="map" alt="a" src="data:image/png;base64,')
