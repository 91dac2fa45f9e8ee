"""What the explorer can be asked: a run is opened with its dataset and its scores; plain arrays and texts leave.

Nothing here knows of HTTP. All that is asked is of held-out stimuli (the test split), of pictures that a user gives, or
of sentences. Raises UserError for what does not fit, as everywhere.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from brainjanus.core.errors import UserError
from brainjanus.core.progress import progress
from brainjanus.core.space import BrainSpace
from brainjanus.core.vocabulary import Modality
from brainjanus.data.dataset import Dataset, listed
from brainjanus.evaluate.brain import voxel_r
from brainjanus.explorer.answers import Decoded, Map, Part, Tokens
from brainjanus.generate import GenerationConfig, codes_in, device_of, estimate, generate, score_candidates
from brainjanus.insilico.experiment import Experiment, opened, own_subjects, region
from brainjanus.run import Run, condition, directions_of, predict

SPLIT = "test"
MOST_CANDIDATES = 100  # held-out stimuli that a decoded one is ranked among
MOST_LISTED = 200
MEAN = GenerationConfig()


class StimulusFacts(NamedTuple):
    """One held-out stimulus. repeats: how often each subject saw it."""

    id: str
    captions: tuple[str, ...]
    repeats: dict[str, int]


class Found(NamedTuple):
    """Stimuli that a search found, a page of them, and how many there are in all."""

    stimuli: list[StimulusFacts]
    total: int


@dataclass(frozen=True)
class Shown:
    """What a brain is shown: the picture of a stimulus or one of the user's, a sentence, or both."""

    stimulus: str | None = None
    picture: UInt8[np.ndarray, "h w 3"] | None = None
    text: str | None = None


class Explorer:
    """A trained run, ready to be asked. device: where it answers.

    Raises UserError if the run or its dataset is not there.
    """

    def __init__(
        self, run: Path | str, dataset: Path | str | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        self.asked: Experiment = opened(Run.open(run, device=device), dataset)
        self.checkpoint = self.asked.checkpoint
        self.dataset: Dataset = self.asked.dataset
        self.subjects = self.asked.subjects
        self.has_pictures = self.checkpoint.tokenizers.image is not None and self.dataset.image_size is not None
        self.has_captions = self.checkpoint.tokenizers.text is not None
        self._accuracy: dict[tuple[str, str], np.ndarray] = {}

    # --- what there is ----------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What the run is, whose brains it knows, and what it can be asked."""
        config = self.checkpoint.model.config
        own = own_subjects(self.checkpoint)
        return {
            "run": self.asked.path.resolve().name,
            "dataset": self.dataset.name,
            "modality": self.dataset.modality,
            "image_size": self.dataset.image_size,
            "directions": directions_of(self.checkpoint),
            "reads": {
                "image": config.image_input if self.checkpoint.tokenizers.image is not None else None,
                "text": config.text_input if self.has_captions else None,
            },
            "stimuli": len(self.stimulus_ids),
            "split": SPLIT,
            "subjects": [
                {
                    "name": subject,
                    "sites": self.space(subject).num_sites,
                    "kind": self.space(subject).kind,
                    "geometry": self.geometry(subject),
                    "rois": {name: int(np.sum(mask)) for name, mask in self.space(subject).rois.items()},
                    "tokens": self.checkpoint.tokenizers.brain.num_codes(subject) if subject in own else 0,
                    "adapted": subject not in own,
                }
                for subject in self.subjects
            ],
        }

    def geometry(self, subject: str) -> str:
        """surface, volume, sensors or none."""
        return str(self.space(subject).geometry.get("type", "none"))

    def space(self, subject: str) -> BrainSpace:
        if subject not in self.subjects:
            raise UserError(f"subject: expected one of {listed(self.subjects)}, got '{subject}'. Name one of these.")
        return self.asked.space(subject)

    @cached_property
    def stimulus_ids(self) -> tuple[str, ...]:
        return tuple(self.asked.stimuli(SPLIT))

    @cached_property
    def _repeats(self) -> dict[str, dict[str, int]]:
        """subject -> stimulus -> how often it was seen."""
        found: dict[str, dict[str, int]] = {}
        for subject in self.subjects:
            trials = self.dataset.trials(subject)
            counts: dict[str, int] = {}
            for row in trials.rows(SPLIT):
                name = trials.stimulus_id[row]
                counts[name] = counts.get(name, 0) + 1
            found[subject] = counts
        return found

    def find(self, query: str = "", subject: str | None = None, start: int = 0, most: int = 50) -> Found:
        """Held-out stimuli whose id or captions hold all words of the query; those of one subject, or of any."""
        words = query.lower().split()
        hits = []
        for name in self.stimulus_ids:
            if subject is not None and name not in self._repeats_of(subject):
                continue
            told = f"{name} {' '.join(self.dataset.captions(name))}".lower()
            if all(word in told for word in words):
                hits.append(name)
        page = hits[start : start + min(most, MOST_LISTED)]
        return Found([self.facts(name) for name in page], len(hits))

    def facts(self, stimulus: str) -> StimulusFacts:
        repeats = {s: counts[stimulus] for s, counts in self._repeats.items() if stimulus in counts}
        return StimulusFacts(self._known(stimulus), self.dataset.captions(stimulus), repeats)

    def picture(self, stimulus: str) -> UInt8[np.ndarray, "h w 3"]:
        """Raises UserError for a stimulus that is not held out, or has no picture."""
        return np.asarray(self.dataset.images([self._known(stimulus)])[0])

    def _known(self, stimulus: str) -> str:
        if stimulus not in self._ids:
            raise UserError(
                f"stimulus: expected one of the {len(self.stimulus_ids)} of the {SPLIT} split, got '{stimulus}'. "
                "Look for it first."
            )
        return stimulus

    @cached_property
    def _ids(self) -> frozenset[str]:
        return frozenset(self.stimulus_ids)

    def _repeats_of(self, subject: str) -> dict[str, int]:
        self.space(subject)
        return self._repeats[subject]

    # --- maps -------------------------------------------------------------------------------------------------------

    def measured(self, subject: str, stimulus: str, repeat: int | None = None) -> Float[np.ndarray, "v"]:
        """The response that was measured, z-scored: the mean over repeats, or one of them, from 0."""
        seen = self._repeats_of(subject).get(self._known(stimulus), 0)
        if not seen:
            raise UserError(f"stimulus '{stimulus}': expected one that {subject} saw, got another. Choose another.")
        if repeat is None:
            return np.asarray(self.dataset.averages(subject, SPLIT, among=[stimulus]).responses[0])
        if not 0 <= repeat < seen:
            raise UserError(
                f"repeat: expected 0 to {seen - 1} of '{stimulus}' in {subject}, got {repeat}. Give one of these."
            )
        trials = self.dataset.trials(subject)
        rows = [row for row in trials.rows(SPLIT) if trials.stimulus_id[row] == stimulus]
        return np.asarray(self.dataset.responses(subject, np.array(rows[repeat : repeat + 1]))[0])

    def conditions(self, shown: Shown) -> dict[str, object]:
        """As rows for the model. Raises UserError for nothing at all."""
        given: dict[str, object] = {}
        if shown.stimulus is not None:
            given["image"] = condition(self.checkpoint, self.dataset, "image", [self._known(shown.stimulus)], SPLIT)
        if shown.picture is not None:
            given["image"] = np.array(shown.picture)[None]
        if shown.text:
            given["text"] = [shown.text]
        if not given:
            raise UserError("encode: expected a picture, a sentence, or both, got neither. Give one of them.")
        return given

    def encode(
        self,
        shown: Shown,
        subjects: Sequence[str] = (),
        *,
        against: Shown | None = None,
        samples: int = 0,
        seed: int = 0,
    ) -> dict[str, Map]:
        """The expected response of each subject to what is shown, less that to what it is held against.

        samples: of single trials that the spread is taken over, at least 2; 0: no spread. That of a contrast is of the
        difference of two trials, which have their noise each.
        """
        given = self.conditions(shown)
        other = None if against is None else self.conditions(against)
        found = {}
        names = tuple(subjects) or self.subjects
        with progress("maps", len(names)) as advance:
            for number, subject in enumerate(names):
                self.space(subject)
                values = self._expected(given, subject)
                if other is not None:
                    values = values - self._expected(other, subject)
                spread = None
                if samples:
                    both = [given] if other is None else [given, other]
                    spread = np.sqrt(
                        np.sum([self._variance(one, subject, max(2, samples), seed) for one in both], axis=0)
                    )
                found[subject] = Map(values, spread)
                advance(number + 1, None)
        return found

    def _expected(self, given: Mapping[str, object], subject: str) -> Float[np.ndarray, "v"]:
        values = generate(self.checkpoint, given, f"brain:{subject}", MEAN)
        assert isinstance(values, torch.Tensor)
        return values[0].float().numpy()

    def _variance(self, given: Mapping[str, object], subject: str, samples: int, seed: int) -> Float[np.ndarray, "v"]:
        """Of single trials around the expected response."""
        config = GenerationConfig("sample", num_samples=samples, seed=seed, trial_noise=True)
        drawn = estimate(self.checkpoint, given, f"brain:{subject}", config).samples
        assert isinstance(drawn, torch.Tensor)
        return drawn[0].float().var(dim=0).numpy()

    def accuracy(self, subject: str, direction: str) -> Float[np.ndarray, "v"]:
        """Voxel r of the expected responses to all held-out stimuli. direction: image->brain or text->brain."""
        known = [name for name in directions_of(self.checkpoint) if name.endswith("->brain")]
        if direction not in known:
            raise UserError(f"direction: expected one of {listed(known)}, got '{direction}'. Name one of these.")
        self.space(subject)
        if (subject, direction) not in self._accuracy:
            made = predict(self.checkpoint, self.dataset, direction, subject, MEAN)
            measured = self.dataset.averages(subject, SPLIT)
            assert list(measured.stimulus_ids) == list(made.stimulus_ids)
            self._accuracy[subject, direction] = voxel_r(measured.responses, np.asarray(made.values))
        return self._accuracy[subject, direction]

    # --- what a response says ---------------------------------------------------------------------------------------

    def decode(
        self, subject: str, stimulus: str, *, repeat: int | None = None, hidden: Sequence[str] = (), samples: int = 0,
        guidance: float = 1.0, temperature: float = 1.0, seed: int = 0, ranked: bool = True,
    ) -> Decoded:  # fmt: skip
        """The pictures and captions that a measured response tells of. hidden: ROIs that the model is not shown."""
        values = self.measured(subject, stimulus, repeat)
        return self.decode_values(
            subject, values, self._hidden(subject, hidden), stimulus if ranked else None, samples=samples,
            guidance=guidance, temperature=temperature, seed=seed,
        )  # fmt: skip

    def _hidden(self, subject: str, regions: Sequence[str]) -> Bool[np.ndarray, "v"]:
        space = self.space(subject)
        gone = np.zeros(space.num_sites, dtype=bool)
        for name in regions:
            gone |= region(space, name)
        if gone.all():
            raise UserError(f"hidden: expected some sites of {subject} to be left, got none. Hide less.")
        return gone

    def decode_values(
        self, subject: str, values: Float[np.ndarray, "v"], hidden: Bool[np.ndarray, "v"], stimulus: str | None, *,
        samples: int, guidance: float, temperature: float, seed: int,
    ) -> Decoded:  # fmt: skip
        name = f"{'part' if hidden.any() else 'brain'}:{subject}"
        given: dict[str, object] = {name: torch.from_numpy(np.where(hidden, np.nan, values).astype(np.float32))[None]}
        pictures: list[np.ndarray] = []
        captions: list[str] = []
        mean = GenerationConfig(guidance=guidance, seed=seed)
        drawn = GenerationConfig("sample", num_samples=samples, temperature=temperature, guidance=guidance, seed=seed)
        if self.checkpoint.tokenizers.image is not None:
            pictures = _as_pixels(generate(self.checkpoint, given, "image", mean))
            if samples:
                several = estimate(self.checkpoint, given, "image", drawn).samples
                assert isinstance(several, torch.Tensor)
                pictures += _as_pixels(several[0])
        if self.has_captions:
            likeliest = GenerationConfig(temperature=0.0, guidance=guidance, seed=seed)
            captions = list(generate(self.checkpoint, given, "text", likeliest))
            if samples:
                said = estimate(self.checkpoint, given, "text", drawn).samples
                assert isinstance(said, list)
                captions += said[0]
        spoken_for = hidden.any() and subject not in own_subjects(self.checkpoint)  # of whom parts have no log p
        ranked = stimulus is not None and not spoken_for
        ranks, log_p, count = self._ranked(given, subject, str(stimulus)) if ranked else ({}, {}, 0)
        return Decoded(values, pictures, captions, ranks, log_p, count)

    def _ranked(
        self, given: Mapping[str, object], subject: str, stimulus: str
    ) -> tuple[dict[str, int], dict[str, float], int]:
        """Where what was seen is among other held-out stimuli of this subject, by log p of each given the response."""
        others = sorted(name for name in self._repeats[subject] if name != stimulus)
        rng = np.random.default_rng(0)
        some = [stimulus, *(others[row] for row in rng.permutation(len(others))[: MOST_CANDIDATES - 1])]
        candidates: dict[str, object] = {}
        if self.has_pictures:
            candidates["image"] = self.dataset.images(some)
        if self.has_captions and all(self.dataset.captions(name) for name in some):
            candidates["text"] = [self.dataset.captions(name)[0] for name in some]
        ranks, log_p = {}, {}
        for target, rows in candidates.items():
            table = score_candidates(self.checkpoint, given, target, rows, one_pass=target == "image")[0]
            ranks[target] = 1 + int((table > table[0]).sum())
            log_p[target] = float(table[0])
        return ranks, log_p, len(some)

    # --- tokens -----------------------------------------------------------------------------------------------------

    def tokens(
        self, subject: str, stimulus: str, *, repeat: int | None = None, swapped: Mapping[int, int] | None = None,
        masked: Sequence[int] = (), seed: int = 0,
    ) -> Tokens:  # fmt: skip
        """A response token by token. swapped: token -> code in its place; masked: tokens whose sites are not shown.

        The sites of a swapped token change by what the codes differ in; what codes cannot hold stays."""
        if subject not in own_subjects(self.checkpoint):
            raise UserError(
                f"tokens: expected a subject that the model was trained on, got {subject}, which others speak for. "
                "Choose another subject."
            )
        tokenizer = self.checkpoint.tokenizers.brain
        values = self.measured(subject, stimulus, repeat)
        codes = codes_in(self.checkpoint, f"brain:{subject}", values[None])
        count, entries = codes.shape[1], tokenizer.config.quantizer.num_entries
        per_patch = count // tokenizer.num_patches(subject)
        patch = tokenizer.site_patch(subject).cpu().numpy() * per_patch
        swapped = dict(swapped or {})
        wrong = [token for token in (*swapped, *masked) if not 0 <= token < count]
        if wrong:
            raise UserError(f"tokens: expected numbers from 0 to {count - 1}, got {wrong[0]}. Name one of these.")
        strange = [code for code in swapped.values() if not 0 <= code < entries]
        if strange:
            raise UserError(f"tokens: expected codes from 0 to {entries - 1}, got {strange[0]}. Give one of these.")

        def told(values: Float[np.ndarray, "v"], hidden: Bool[np.ndarray, "v"]) -> Decoded:
            return self.decode_values(
                subject, values, hidden, stimulus, samples=0, guidance=1.0, temperature=1.0, seed=seed
            )

        nothing = np.zeros(len(values), dtype=bool)
        before, after = told(values, nothing), None
        if swapped or masked:
            other = codes.clone()
            for token, code in swapped.items():
                other[0, token] = code
            with torch.no_grad():
                both = tokenizer.decode(torch.cat([codes, other]).to(device_of(self.checkpoint)), subject).cpu()
            gone = np.isin(patch // per_patch, [token // per_patch for token in masked])
            if gone.all():
                raise UserError("tokens: expected some of them to be left, got all masked. Mask fewer.")
            after = told(values + (both[1] - both[0]).numpy(), gone)
            after = after._replace(measured=np.where(gone, np.nan, after.measured).astype(np.float32))
        sequence = self._sequence(subject, stimulus, codes)
        return Tokens(sequence, codes[0].numpy(), entries, per_patch, patch, values, before, after)

    def _sequence(self, subject: str, stimulus: str, codes: Int[torch.Tensor, "1 k"]) -> list[Part]:
        """The response, the first caption and the picture of its stimulus, in tokens of the joint vocabulary."""
        vocabulary, tokenizers = self.checkpoint.model.vocabulary, self.checkpoint.tokenizers

        def part(modality: Modality, opening: str, codes: Int[torch.Tensor, "1 k"], words: Sequence[str] = ()) -> Part:
            tokens = vocabulary.to_tokens(codes[0].long(), modality).tolist()
            return Part(modality, vocabulary.control(opening), tokens, list(words))

        parts = [part("brain", f"brain:{subject}", codes)]
        said = self.dataset.captions(stimulus)
        if tokenizers.text is not None and said:
            pieces = tokenizers.text.pieces(said[:1])[0]
            told = ["", *(tokenizers.text.decode(torch.tensor([pieces[:n]]))[0] for n in range(1, len(pieces) + 1))]
            words = [after.removeprefix(before) for before, after in pairwise(told)]  # a letter may be several pieces
            parts.append(part("text", "text", torch.tensor([[*pieces, tokenizers.text.end]]), [*words, "end"]))
        if tokenizers.image is not None and self.has_pictures:
            parts.append(part("image", "image", codes_in(self.checkpoint, "image", self.dataset.images([stimulus]))))
        return parts

    # --- scores -----------------------------------------------------------------------------------------------------

    def scores(self) -> list[dict[str, Any]]:
        """The records of scores.json, if the run was scored."""
        folder = self._scored()
        return [] if folder is None else _read_scores(folder / "scores.json")

    def report(self) -> str:
        """The page that `evaluate` wrote, with its figures. Raises UserError if there is none."""
        folder = self._scored()
        if folder is None or not (folder / "report.html").is_file():
            raise UserError(
                f"report: expected one of {self.asked.path.name}, got none. Score the run: `brainjanus evaluate RUN`."
            )
        return (folder / "report.html").read_text(encoding="utf-8")

    def _scored(self) -> Path | None:
        """Where the scores of the run are: in RUN/scores, or beside RUN."""
        folders = (self.asked.path / "scores", self.asked.path.parent)
        return next((folder for folder in folders if (folder / "scores.json").is_file()), None)


def _read_scores(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text())
        return [dict(record) for record in records]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: expected the records of `evaluate`, got '{error}'. Score the run again.") from error


def _as_pixels(pictures: object) -> list[UInt8[np.ndarray, "h w 3"]]:
    assert isinstance(pictures, torch.Tensor)
    return list((pictures.float() * 255).round().clamp(0, 255).to(torch.uint8).numpy())
