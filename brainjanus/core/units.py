"""Units: raw betas enter, z-scored responses leave; the dataset that they were z-scored in is not needed.

    FOLDER/units.safetensors    mean, std float64 [sites]: of the training trials, in the units of the raw betas;
                                dropped int64 [1]: constant columns of the raw betas that are no sites

A model speaks in z-scored responses only. Where each session was z-scored on its own, statistics are the means over
sessions: which session a new response belongs to is not known.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace

FILE = "units.safetensors"


# N rows, V sites
class Units(NamedTuple):
    """One subject's `raw = zscored * std + mean`. dropped: columns that raw files have and the space has not."""

    mean: Float[np.ndarray, "v"]
    std: Float[np.ndarray, "v"]
    dropped: int = 0

    def zscored(
        self,
        raw: Shaped[np.ndarray, "..."],
        space: BrainSpace,
        source: Path | str,
        needed: Bool[np.ndarray, "v"] | None = None,
    ) -> Float[np.ndarray, "n v"]:
        """Raw responses [rows, sites] in z-scored units, float32. Sites that were dropped may be there or not.

        source: what to call them in the sentence of an error. needed: sites that have to be measured; default: all.
        Raises UserError if they are no numbers [rows, sites of this subject], or a needed one is not finite.
        """
        numbers = raw.ndim == 2 and raw.dtype.kind in "fiu"
        columns_known = space.geometry.get("type") == "none" and space.index is not None
        if numbers and self.dropped and columns_known and raw.shape[1] == space.num_sites + self.dropped:
            raw = raw[:, space.index]
        if not numbers or raw.shape[1] != space.num_sites or not len(raw):
            raise UserError(
                f"{source}: expected numbers [rows, {space.num_sites} sites of {space.subject}], at least one row, got "
                f"{raw.dtype} {list(raw.shape)}. "
                + (
                    f"{self.dropped} constant sites were dropped when the dataset was prepared: leave them out here "
                    "too."
                    if self.dropped
                    else "Were they made with another mask, or are rows and columns exchanged?"
                )
            )
        bad = np.argwhere(~np.isfinite(raw) & (True if needed is None else needed))
        if len(bad):
            row, site = bad[0]
            raise UserError(
                f"{source}: expected finite responses, got {raw[row, site]} in row {row}, site {site} ({len(bad)} in "
                "all). Leave these rows out, or repair them."
            )
        return ((raw.astype(np.float64) - self.mean) / self.std).astype(np.float32)

    def save(self, folder: Path) -> None:
        arrays = {"mean": self.mean, "std": self.std, "dropped": np.array([self.dropped], np.int64)}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "Units":
        """Read what `save` wrote. Raises UserError if it is missing or damaged."""
        try:
            arrays = load_file(folder / FILE)
            return cls(arrays["mean"], arrays["std"], int(arrays["dropped"][0]))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(
                f"{folder / FILE}: expected the statistics of raw responses, got '{error}'. "
                "The run folder is damaged: copy it again or train again."
            ) from error
