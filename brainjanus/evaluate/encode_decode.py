"""Encode, then decode: is a predicted response good enough to decode the picture from it?

Enters: pictures that were decoded from predicted responses. Leaves: records of image->brain, beside the same for the
linear model and for the padding control (`evaluate.control`), which hides the picture in the vector: it is perfect here
and knows nothing of the brain. So this score says something beside voxel r only, never alone.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Shaped

from brainjanus.data.dataset import Dataset
from brainjanus.evaluate.backbones import BACKBONES
from brainjanus.evaluate.baselines import linear_baseline, linear_decoder
from brainjanus.evaluate.control import padding_control
from brainjanus.evaluate.metrics import ENCODE_DECODE, metric_of
from brainjanus.evaluate.record import Predictions, Record
from brainjanus.evaluate.score import ScoreOptions, score

METRICS = ("two_way", "pixcorr", "ssim", *BACKBONES)
CONTROL = "padding control"
NO_REPEATS = "no measured response takes part"


def encode_decode_records(
    dataset: Dataset,
    predictions: Predictions,
    restored: Shaped[np.ndarray, "n h w 3"],
    options: ScoreOptions | None = None,
    *,
    split: str = "test",
) -> list[Record]:
    """Scores of the pictures `restored` from the responses that image->brain `predictions` predicted.

    Values are pictures in [0, 255], in the order of the predictions. The baseline decodes the linear encoder's
    responses with the linear decoder.
    """
    options = options or ScoreOptions()
    decoded = replace(predictions, direction="brain->image", values=restored)
    found = [r for r in score(dataset, decoded, options, split=split).records if r.roi is None and r.metric in METRICS]
    linear: dict[str, float] = {}
    if options.baseline:
        ids = list(predictions.stimulus_ids)
        encoded = np.asarray(linear_baseline(dataset, predictions.subject, "image->brain", ids, split=split))
        plain = replace(decoded, values=linear_decoder(dataset, predictions.subject, encoded))
        scored = score(dataset, plain, replace(options, resamples=0, permutations=0), split=split)
        linear = {r.metric: r.value for r in scored.records if r.roi is None}
    records = []
    for record in found:
        name = f"{ENCODE_DECODE}{record.metric}"
        definition = metric_of(name).definition or f"decoded from the prediction; {record.protocol.definition}"
        protocol = replace(record.protocol, definition=definition, repeats=NO_REPEATS)
        renamed = replace(record, direction="image->brain", metric=name, protocol=protocol)
        records.append(replace(renamed, baseline=linear.get(record.metric), ceiling=None))
    return records


def control_records(
    dataset: Dataset, subject: str, ids: Sequence[str], options: ScoreOptions | None = None, *, split: str = "test"
) -> list[Record]:
    """The padding control's scores on some stimuli, as a brain and as a picture: the first expose it, the second are
    perfect."""
    options = replace(options or ScoreOptions(), baseline=False)
    control = padding_control(dataset.images(ids), dataset.space(subject).num_sites)
    padded = Predictions("image->brain", subject, ids, CONTROL, control.responses)
    records = score(dataset, padded, options, split=split).records
    return records + encode_decode_records(dataset, padded, control.decode(control.responses), options, split=split)
