"""What weights add: networks for pictures, CLIP for captions; here with small stand-ins for both."""

import numpy as np
import pytest
import torch

from brainjanus.evaluate import extras, figures
from brainjanus.evaluate.backbones import BACKBONES, Available, Backbone
from brainjanus.evaluate.clip import ClipModel
from brainjanus.evaluate.extras import Extras, available_networks
from brainjanus.evaluate.figures import Draws
from brainjanus.evaluate.metrics import metric_of
from brainjanus.evaluate.record import Predictions
from brainjanus.evaluate.score import ScoreOptions, score


def of(records, metric):
    (record,) = [record for record in records if record.metric == metric and record.roi is None]
    return record


def pooled(pictures):
    """Features of a stand-in network: the picture at 4 x 4 pixels."""
    return torch.nn.functional.adaptive_avg_pool2d(pictures, 4).flatten(1)


@pytest.fixture
def networks(monkeypatch):
    ready = {
        name: Backbone(name, spec, f"stand-in {name}", pooled, torch.device("cpu")) for name, spec in BACKBONES.items()
    }
    monkeypatch.setattr(figures, "available_networks", lambda weights: Available(ready, {}))
    monkeypatch.setattr(extras, "_seen", {})


def test_pictures_are_scored_in_each_network(tiny, networks):
    ids = tiny.averages("s1", "test").stimulus_ids
    noise = np.random.default_rng(0).normal(0, 60, tiny.images(ids).shape)
    values = np.clip(tiny.images(ids) + noise, 0, 255).astype(np.float32)
    scored = score(tiny, Predictions("brain->image", "s1", ids, "mean", values), ScoreOptions(resamples=50))
    assert scored.skipped == {}
    for name in ("alexnet2", "alexnet5", "inception", "clip"):
        record = of(scored.records, name)
        assert record.floor == pytest.approx(0.5, abs=0.01)
        assert record.value > 0.7 and record.p < 0.01 and record.baseline > 0.5
        assert record.protocol.definition == f"stand-in {name}"
    for name in ("effnet", "swav"):
        record = of(scored.records, name)
        assert metric_of(name).lower
        assert record.value < record.floor and record.p < 0.01  # a small distance is good
    found = of(scored.records, "retrieval:clip decoded->seen")
    assert found.value > found.floor == pytest.approx(1 / 30)


def test_features_of_seen_pictures_are_those_of_the_dataset_at_hand(tiny, blocks, networks):
    """They are kept for the next estimator, but not for another dataset."""
    for dataset in (tiny, blocks, tiny):
        ids = dataset.averages("s1", "test").stimulus_ids
        values = dataset.images(ids)
        records = score(dataset, Predictions("brain->image", "s1", ids, "mean", values)).records
        assert of(records, "effnet").value == pytest.approx(0, abs=0.05)
    assert len(extras._seen) == 2 * len(BACKBONES)


def test_without_weights_each_network_says_what_to_give():
    skipped = available_networks(None).skipped
    assert skipped.keys() == BACKBONES.keys()
    assert all("--weights" in why and why.count(".") == 1 for why in skipped.values())


class StandInClip(ClipModel):
    """Embeddings by colour: a caption that names the colour of a picture's left half is close to it."""

    definition = "stand-in CLIP"
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [1, 1, 0]], np.float32)
    names = ("red", "green", "blue", "white", "yellow")

    def __init__(self):
        pass

    def embed_pictures(self, pictures):
        left = pictures[:, :, : pictures.shape[2] // 2].mean(axis=(1, 2)) - 28
        return left / np.linalg.norm(left, axis=1, keepdims=True)

    def embed_captions(self, captions):
        assert all(caption.startswith("A photo depicts ") for caption in captions)
        first = [
            next(c for word in text.lower().split() for n, c in zip(self.names, self.colours, strict=True) if n == word)
            for text in captions
        ]
        return np.stack(first) / np.linalg.norm(first, axis=1, keepdims=True)


def test_captions_are_scored_with_clip(tiny, monkeypatch):
    monkeypatch.setattr(ClipModel, "load", classmethod(lambda cls, name: StandInClip()))
    monkeypatch.setattr(extras, "_scorers", {})
    ids = tiny.averages("s1", "test").stimulus_ids
    right = Predictions("brain->text", "s1", ids, "greedy", [tiny.captions(i)[0] for i in ids])
    options = ScoreOptions(baseline=False, resamples=50, extras=Extras(clip="a folder", java=False))
    scored = score(tiny, right, options)
    record = of(scored.records, "clip_s")
    assert record.value > record.floor
    assert "stand-in CLIP" in record.protocol.definition
    assert of(scored.records, "ref_clip_s").value > 0.9
    assert "clip_s" not in scored.skipped


def test_draws_depend_on_the_seed_and_on_nothing_else():
    ids = [f"im{i}" for i in range(20)]
    one, same, other = Draws.of(ids, 3, 5, 6), Draws.of(ids, 3, 5, 6), Draws.of(ids, 4, 5, 6)
    assert (one.shuffles == same.shuffles).all() and (one.counts == same.counts).all()
    assert (one.counts != other.counts).any()
    assert (one.counts.sum(axis=1) == 20).all()
    assert all(sorted(row) == list(range(20)) for row in one.shuffles)
