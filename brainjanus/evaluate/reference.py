"""What predictions are held against: the measured responses, the seen pictures, or the captions of some stimuli.

Enters: a split of a dataset, or ids with arrays, pictures or captions of any origin. Leaves: a Reference, in the order
of its ids, which also says what a protocol has to: where it comes from, in which units, over how many repeats.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import SPLITS, Dataset
from brainjanus.data.write import restricted
from brainjanus.evaluate.protocol import UNDECLARED, hash_of_captions, hash_of_ids
from brainjanus.evaluate.record import Predictions

ZSCORED = {
    "session": "z-scored per site and session with training trials",
    "all": "z-scored per site with training trials",
    "none": "as given, not z-scored",
}


# N stimuli, V sites, P pictures of a stimulus
@dataclass(frozen=True, eq=False)
class Reference:
    """What was measured, seen or said of stimuli `ids`. One of responses, pictures and captions is enough.

    name: of the dataset or the file; fingerprint: of the dataset. responses: [n v], means over num_repeats.
    pictures: for each stimulus uint8 RGB [p, h, w, 3]. space: the sites' places, ROIs and noise variance.
    units: of the responses, in words. dataset: where baselines and constant predictions can be fitted, if there is one.
    """

    name: str
    fingerprint: str
    subject: str
    split: str
    ids: Sequence[str]
    responses: Float[np.ndarray, "n v"] | None = None
    num_repeats: Int[np.ndarray, "n"] | None = None
    space: BrainSpace | None = None
    units: str = UNDECLARED
    pictures: Sequence[UInt8[np.ndarray, "_ _ _ 3"]] | None = None
    captions: Sequence[Sequence[str]] | None = None
    dataset: Dataset | None = None

    @property
    def stimuli(self) -> str:
        return hash_of_ids(self.ids)

    @cached_property
    def digest_of_pictures(self) -> str:
        """SHA-256 of ids and seen pictures, whatever the order of the ids."""
        return _digest(self.ids, self.pictures or ())

    @cached_property
    def held(self) -> str:
        """SHA-256 of what predictions are held against: captions, pictures or responses of the stimuli, with the ids.

        It is the same for the same references out of a dataset and out of a file.
        """
        if self.captions is not None:
            return hash_of_captions(dict(zip(self.ids, self.captions, strict=True)))
        return self.digest_of_pictures if self.pictures is not None else _digest(self.ids, self.responses)

    def restricted(self, ids: Sequence[str]) -> "Reference":
        """The same for some of the stimuli, in the order of `ids`."""
        row = {stimulus: position for position, stimulus in enumerate(self.ids)}
        rows = [row[stimulus] for stimulus in ids]
        return replace(
            self,
            ids=list(ids),
            responses=None if self.responses is None else self.responses[rows],
            num_repeats=None if self.num_repeats is None else self.num_repeats[rows],
            pictures=None if self.pictures is None else [self.pictures[r] for r in rows],
            captions=None if self.captions is None else [self.captions[r] for r in rows],
        )

    def of_sites(self, sites: Bool[np.ndarray, "v"]) -> "Reference":
        """The same for some of the sites."""
        assert self.responses is not None
        space = None if self.space is None else restricted(self.space, sites)
        return replace(self, responses=self.responses[:, sites], space=space)

    def repeats(self) -> str:
        """How many repeats stand behind the mean responses."""
        if self.num_repeats is None:
            return UNDECLARED
        low, high = int(self.num_repeats.min()), int(self.num_repeats.max())
        return f"mean of {low} repeat{'s' * (low > 1)}" if low == high else f"mean of {low} to {high} repeats"

    def noise(self) -> Float[np.ndarray, "v"] | None:
        """Noise variance of each site in the mean responses: that of a trial, divided by the repeats."""
        if self.space is None or self.space.noise_variance is None or self.num_repeats is None:
            return None
        return self.space.noise_variance * float(np.mean(1 / self.num_repeats))

    def ceiling(self) -> Float[np.ndarray, "v"] | None:
        """The noise ceiling of each site for the repeats at hand (Allen et al. 2022)."""
        noise = self.noise()
        return (
            None if noise is None or self.space is None else replace(self.space, noise_variance=noise).noise_ceiling(1)
        )


def _digest(ids: Sequence[str], values: Any) -> str:
    found = hashlib.sha256()
    for row in np.argsort(np.array(ids, dtype=str)):
        found.update(f"{ids[row]}\n".encode())
        found.update(np.ascontiguousarray(values[row]).tobytes())
    return found.hexdigest()


def reference_of(dataset: Dataset, predictions: Predictions, ids: list[str], split: str) -> Reference:
    """What the predictions `ids` (in this order) are held against in a split of a dataset.

    Raises UserError if a stimulus is not in the split, there are fewer than two, or sites do not match.
    """
    if split not in SPLITS[1:]:
        raise UserError(
            f"--split: expected {' or '.join(SPLITS[1:])}, got '{split}'. Models, baselines and z-scoring were fitted "
            "to training stimuli: a score on them says nothing."
        )
    averages = dataset.averages(predictions.subject, split)
    row = {stimulus: position for position, stimulus in enumerate(averages.stimulus_ids)}
    unknown = [stimulus for stimulus in ids if stimulus not in row]
    where = f"{predictions.direction} predictions for {predictions.subject}"
    if unknown:
        raise UserError(
            f"{where}: expected stimuli of the {split} split, got '{unknown[0]}' ({len(unknown)} of {len(ids)}). "
            "Scores on stimuli that were trained on say nothing: predict the stimuli of the split."
        )
    if len(ids) < 2:
        raise UserError(
            f"{where}: expected at least 2 stimuli, got {len(ids)}. A correlation across stimuli, and a shuffle of "
            "them, needs several: predict the whole split."
        )
    rows = [row[stimulus] for stimulus in ids]
    target = predictions.direction.partition("->")[2]
    facts: dict[str, Any] = {"responses": averages.responses[rows], "num_repeats": averages.num_repeats[rows]}
    if target == "brain":
        sites, found = averages.responses.shape[1], np.shape(predictions.values)[1]
        if found != sites:
            raise UserError(
                f"{where}: expected {sites} sites, got {found}. "
                "Were they made with another subject's tokenizer or mask? Generate them again for this subject."
            )
    elif target == "image":
        facts["pictures"] = [dataset.pictures(stimulus) for stimulus in ids]
    else:
        facts["captions"] = [dataset.captions(stimulus) for stimulus in ids]
        if not any(facts["captions"]):
            raise UserError(
                f"{dataset.path}: expected captions of the stimuli that are scored, got none. "
                "Prepare the dataset again with captions, or leave brain->text out."
            )
    how = dataset.manifest.get("zscore", UNDECLARED)
    return Reference(
        dataset.name,
        dataset.fingerprint,
        predictions.subject,
        split,
        ids,
        space=dataset.space(predictions.subject),
        units=f"{dataset.modality}, {ZSCORED.get(how, how)}",
        dataset=dataset,
        **facts,
    )
