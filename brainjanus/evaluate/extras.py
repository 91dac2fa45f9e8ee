"""What a user adds to a scoring: pretrained networks, CLIP, language models, features of their own.

Enters: folders of weights (or names on a hub), and features. Leaves: what is loaded from them, once for all that is
scored in a process.
"""

import atexit
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from brainjanus.evaluate.backbones import BACKBONES, Available, Backbone, available
from brainjanus.evaluate.backbones import features as embed
from brainjanus.evaluate.bertscore import BertScorer
from brainjanus.evaluate.captions import CaptionScorer
from brainjanus.evaluate.clip import ClipModel
from brainjanus.evaluate.metrics import metric_of
from brainjanus.evaluate.reference import Reference

HUB = "hub"  # instead of a folder of weights
# (network, what was seen) -> features of the seen pictures: the same for all subjects and estimators
_seen: dict[tuple[str, str], np.ndarray] = {}
_scorers: dict[tuple, CaptionScorer] = {}  # the last one only: it keeps a Java process


@dataclass(frozen=True)
class Extras:
    """What the user adds. weights: a folder of pretrained networks (see `evaluate.backbones`), or "hub".

    features: name -> features [n, ...] of the decoded pictures in the order of the reference, seen_features: of the
    seen ones. clip: folder or hub name of CLIP ViT-B/32 for CLIP-S; bert: of a model for BERTScore. java: False to do
    without, even if it is there.
    """

    weights: Path | None = None
    features: Mapping[str, Float[np.ndarray, "n ..."]] = field(default_factory=dict)
    seen_features: Mapping[str, Float[np.ndarray, "n ..."]] = field(default_factory=dict)
    clip: str | None = None
    bert: str | None = None
    java: bool = True


@lru_cache(maxsize=1)
def available_networks(weights: Path | None) -> Available:
    """The pretrained networks in a folder, or on the hub; without either none is looked for, and each says so."""
    if weights is not None:
        return available(None if str(weights) == HUB else weights)
    why = f"give --weights, a folder with its pretrained weights, or '{HUB}' to download them"
    return Available({}, {name: f"{metric_of(name).title} is not scored: {why}." for name in BACKBONES})


def seen_features(network: Backbone, reference: Reference) -> Float[np.ndarray, "p d"]:
    """Features of the seen pictures, one row per picture."""
    assert reference.pictures is not None
    key = network.definition, reference.digest_of_pictures
    if key not in _seen:
        _seen[key] = embed(network, np.concatenate(list(reference.pictures)))
    return _seen[key]


def caption_scorer(reference: Reference, extras: Extras) -> CaptionScorer:
    """The scorer of these references, kept until another one is asked for: several systems are scored in a row."""
    pictures = None
    if extras.clip is not None and reference.pictures is not None:
        pictures = np.stack([group[0] for group in reference.pictures])
    elif extras.clip is not None and reference.dataset is not None and reference.dataset.image_size is not None:
        pictures = reference.dataset.images(reference.ids)
    shown = None if pictures is None else hash(pictures.tobytes())
    key = reference.held, reference.stimuli, extras.clip, extras.bert, extras.java, shown
    if key not in _scorers:
        for scorer in _scorers.values():
            scorer.close()
        _scorers.clear()
        clip = None if extras.clip is None else ClipModel.load(extras.clip)
        bert = None if extras.bert is None else BertScorer.load(extras.bert)
        _scorers[key] = CaptionScorer(
            reference.captions or (),
            names=reference.ids,
            java=extras.java,
            bertscore=bert,
            clip=clip,
            pictures=pictures,
        )
        atexit.register(_scorers[key].close)
    return _scorers[key]
