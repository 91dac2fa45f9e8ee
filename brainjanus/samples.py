"""Samples: what a model says in all four directions while it is trained, always of the same stimuli.

Enters: a model under training, every so many steps. Leaves, beside its log:

    RUN/stages/omni/samples/step-00000500.png   one picture: what was decoded, beside what was seen, said and measured
                            index.html          all steps so far, the newest first, and the losses so far

Seeds and the scale of colours are fixed, so that pictures of different steps compare. Nothing here draws from torch's
own generator or moves a weight. Samples are extra: what goes wrong with them is said once, and training goes on.
"""

import base64
import io
import json
import sys
import textwrap
import traceback
import warnings
from collections.abc import Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.processes import by_itself
from brainjanus.core.progress import unshown
from brainjanus.data.dataset import Dataset
from brainjanus.evaluate.brain import unit
from brainjanus.evaluate.cortex import INK, draw_maps
from brainjanus.evaluate.examples import displayable
from brainjanus.evaluate.image import pixcorr_scores
from brainjanus.evaluate.page import embedded, glossary, page, training
from brainjanus.generate import GenerationConfig, generate
from brainjanus.model.checkpoint import Checkpoint, Tokenizers
from brainjanus.model.omni import OmniModel
from brainjanus.model.sequence import Task
from brainjanus.train.codes import Codes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNT = 6  # stimuli that are shown
ON_CORTEX = 2  # of them, whose responses are drawn
SIDES = ("lateral", "ventral")  # that the cortex is seen from
SEED = 0
ROW, PICTURE, WORDS, GAP, HEADER = 2.3, 1.85, 3.4, 0.12, 0.95  # inches
MAPS_WIDE, MAPS_HIGH = 12.0, 9.0  # ... that maps may always take
DPI = 100
CHARACTERS = 38  # of a line of words
EARLIER = 1000  # pixels across of an earlier step on the page


class Shown(NamedTuple):
    """Some stimuli that one subject saw: what a model is asked about, and what it is held against.

    rows: where they are among the codes. pictures, captions: None where the data has none.
    """

    ids: list[str]
    rows: Int[Tensor, "n"]
    subject: str
    responses: Float[np.ndarray, "n v"]
    pictures: UInt8[np.ndarray, "n h w 3"] | None
    captions: list[tuple[str, ...]] | None


class Said(NamedTuple):
    """What a model says of these stimuli; None where the data lacks a modality."""

    captions: list[str] | None = None  # greedy, of the brain
    expected: UInt8[np.ndarray, "n h w 3"] | None = None  # of the brain
    sample: UInt8[np.ndarray, "n h w 3"] | None = None  # of the brain
    of_image: Float[np.ndarray, "n v"] | None = None  # the response expected to the picture
    of_text: Float[np.ndarray, "n v"] | None = None  # ... to the first caption


class Samples:
    """What `fit_omni` shows: call it with a model in eval mode and the number of its steps.

    training, validation: the codes that losses are of; without held-out stimuli, some of training are shown. folder:
    that of the stage, where its log is. steps: how many there will be.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizers: Tokenizers,
        training: Codes,
        validation: Codes | None,
        folder: Path,
        steps: int,
    ):
        self.dataset, self.tokenizers, self.steps = dataset, tokenizers, steps
        self.codes, self.held_out = validation or training, validation is not None
        self.log, self.folder = folder / "log.jsonl", folder / "samples"
        self.on_device: tuple[torch.device, Tokenizers] = (torch.device("cpu"), tokenizers)
        self.earlier: dict[str, bytes] = {}  # small pictures of steps, by the name of their files
        self.failed = False

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> None:
        if not (self.tokenizers.image or self.tokenizers.text):
            return  # nothing but brains: no direction to show
        try:
            with by_itself(), unshown():
                self.write(model, step)
        except Exception as error:
            if not self.failed:
                if not isinstance(error, UserError):
                    traceback.print_exc()
                print(f"samples of step {step} are left out, and training goes on: {error}", file=sys.stderr)
            self.failed = True

    def write(self, model: nn.Module, step: int) -> None:
        assert isinstance(model, OmniModel)
        said = said_by(self.checkpoint(model), self.shown, self.codes)
        with torch.autocast("cpu", enabled=False):  # numbers are not of the model any more
            png = self.draw(said, step)
        with written_beside(self.folder / f"step-{step:08}.png") as beside:
            beside.write_bytes(png)
        with written_beside(self.folder / "index.html") as beside:
            beside.write_text(self.page(), encoding="utf-8")

    @cached_property
    def shown(self) -> Shown:
        return stimuli_shown(self.dataset, self.tokenizers, self.codes, COUNT)

    def checkpoint(self, model: OmniModel) -> Checkpoint:
        """The model with its tokenizers, where it is."""
        device = model.embed_tokens.weight.device
        if device != self.on_device[0]:
            self.on_device = device, self.tokenizers.on(device)
        return Checkpoint(self.on_device[1], model, {})

    def told(self) -> str:
        """Whose stimuli these are."""
        kind = "held out of training" if self.held_out else "of TRAINING: none are held out"
        return f"{self.shown.subject}, {len(self.shown.ids)} stimuli {kind}"

    # ------------------------------------------------------------------------------------------------ the picture

    def draw(self, said: Said, step: int) -> bytes:
        """One picture: a row for each stimulus, and the responses to the first of them on the cortex (PNG)."""
        from matplotlib.figure import Figure

        shown = self.shown
        maps, told = self.maps(said)
        columns = {} if shown.pictures is None else {"seen": shown.pictures}
        columns |= {name: x for name, x in (("expected", said.expected), ("one sample", said.sample)) if x is not None}
        words = len(columns) * (PICTURE + GAP) + GAP
        left = words + WORDS + 2 * GAP
        wide, high = (0.0, 0.0) if maps is None else (maps.shape[1] / DPI, maps.shape[0] / DPI)
        size = (left + max(wide, 0 if told is None else WORDS), HEADER + max(len(shown.ids) * ROW, high) + GAP)
        figure = Figure(size, dpi=DPI)
        write(figure, GAP, 0.3, f"{self.dataset.name}: step {step:,} of {self.steps:,}", size=15, weight="bold")
        write(figure, GAP, 0.58, self.told(), size=10, color="#667080")
        for number, name in enumerate(columns):
            label = name if name == "seen" else f"{name}, of the brain"
            write(figure, GAP + number * (PICTURE + GAP), HEADER - 0.1, label, size=9, color="#667080")
        if said.captions is not None:
            write(figure, words, HEADER - 0.1, "said of the brain, greedily", size=9, color="#667080")
        r = {name: correlations(shown, values) for name, values in responses_of(said).items()}
        like = None
        if said.expected is not None and shown.pictures is not None:
            like = pixcorr_scores([picture[None] for picture in shown.pictures], said.expected).diagonal()
        for row, stimulus in enumerate(shown.ids):
            top = HEADER + row * ROW
            for number, pictures in enumerate(columns.values()):
                axes = axes_at(figure, GAP + number * (PICTURE + GAP), top, PICTURE, PICTURE)
                axes.imshow(pictures[row], interpolation="nearest", aspect="auto")
            below = top + PICTURE + 0.14 if columns else top
            name = f"{row + 1}  {stimulus}" + (
                f"   PixCorr of the expected {like[row]:.2f}" if like is not None else ""
            )
            write(figure, GAP, below, name, size=9, color="#667080")
            lines = words_of(said, shown, row, {name: values[row] for name, values in r.items()})
            for place, (line, style) in enumerate(lines):
                write(figure, words, top + 0.12 + 0.21 * place, line, **style)
        if maps is not None:
            axes = axes_at(figure, left, HEADER - 0.3, wide, high)
            axes.imshow(maps, interpolation="none", aspect="auto")
        if told is not None:
            write(figure, left, HEADER, "\n".join(textwrap.wrap(told, CHARACTERS)), size=9, color=INK, va="top")
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # captions may be in any script
            figure.savefig(file, format="png", facecolor="white")
        return file.getvalue()

    def maps(self, said: Said) -> tuple[UInt8[np.ndarray, "h w 3"] | None, str | None]:
        """Measured and expected responses to the first stimuli on the cortex, or why they cannot be drawn."""
        from PIL import Image

        expected = responses_of(said)
        if not expected:
            return None, None
        rows: dict[str, np.ndarray] = {}
        measured = self.shown.responses
        for number, stimulus in enumerate(self.shown.ids[:ON_CORTEX]):
            rows[f"{number + 1}  {stimulus}: measured"] = measured[number]
            for name, values in expected.items():
                r = correlations(self.shown, values)[number]
                rows[f"{number + 1}  expected {name}: r {r:.2f}"] = values[number]
        top = float(f"{np.percentile(np.abs(measured), 99):.2g}") or 1.0  # of what was measured: the same at every step
        try:
            space = self.dataset.space(self.shown.subject)
            png = draw_maps(space, rows, label="response (z)", limits=(-top, top), sides=SIDES)
        except UserError as error:
            return None, str(error)
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        picture.thumbnail((DPI * MAPS_WIDE, DPI * max(MAPS_HIGH, len(self.shown.ids) * ROW + 0.3)))
        return np.asarray(picture), None

    # ------------------------------------------------------------------------------------------------ the page

    def page(self) -> str:
        """All steps so far, the newest in full, and the losses so far."""
        files = sorted(self.folder.glob("step-*.png"), reverse=True)
        for file in files[1:]:
            if file.name not in self.earlier:
                self.earlier[file.name] = smaller(file.read_bytes())
        newest, *others = files
        figures = "".join(
            f'<figure class="keep"><figcaption><b>{named(file)}</b> <a href="{file.name}">full size</a></figcaption>'
            f'<img class="step" alt="{named(file)}" '
            f'src="data:image/jpeg;base64,{base64.b64encode(self.earlier[file.name]).decode()}"></figure>'
            for file in others
        )
        first = f'<img class="step" alt="{named(newest)}" src="{embedded(newest.read_bytes())}">'
        note = "" if self.held_out else '<p class="note">No stimuli are held out: these were trained on.</p>'
        sections = [
            ("newest", named(newest), f"<p>{escape(self.told())}</p>{note}{first}{glossary(WHAT)}"),
            ("losses", "Losses so far", training(lines_of(self.log))),
            ("earlier", "Earlier steps", figures),
        ]
        style = "body { max-width: 1500px; } img.step { width: 100%; background: #fff; border-radius: 8px; }"
        return page(f"{self.dataset.name}: samples while training", self.dataset.modality, sections, style)


WHAT = {
    "expected": "the mean of what the model holds possible: probabilities of all codes, decoded, in one pass",
    "one sample": "one of the things it holds possible, drawn code by code, with the same random numbers at every step",
    "r": "correlation across sites between the expected and the measured response to this stimulus",
    "PixCorr": "correlation across pixels between the expected and the seen picture",
}


def stimuli_shown(dataset: Dataset, tokenizers: Tokenizers, codes: Codes, count: int) -> Shown:
    """A few stimuli, evenly taken of those that may be drawn and that the first subject saw."""
    rows = torch.empty(0, dtype=torch.long)
    for subject in tokenizers.brain.subjects:
        rows = codes.stimuli_of(Task((f"brain:{subject}",), "text"))
        if len(rows):
            break
    if not len(rows):
        raise UserError("samples: expected stimuli that a subject saw, got none. Is the split empty?")
    rows = rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]
    ids = [codes.ids[row] for row in rows.tolist()]
    trials = dataset.trials(subject)
    split = next(split for split in ("train", "val") if set(ids) <= set(trials.stimuli(split)))
    averages = dataset.averages(subject, split, ids)
    place = {stimulus: row for row, stimulus in enumerate(averages.stimulus_ids)}
    responses = averages.responses[[place[stimulus] for stimulus in ids]]
    pictures = dataset.images(ids) if tokenizers.image is not None else None
    captions = [dataset.captions(stimulus) for stimulus in ids] if tokenizers.text is not None else None
    return Shown(ids, rows, subject, responses, pictures, captions)


def said_by(checkpoint: Checkpoint, shown: Shown, codes: Codes) -> Said:
    """All four directions, or those that the data has the modalities for."""
    name = f"brain:{shown.subject}"
    brain = {name: shown.responses}
    mean, sample = GenerationConfig(seed=SEED), GenerationConfig(estimate="sample", seed=SEED)
    said = Said()
    if shown.captions is not None:
        captions = generate(checkpoint, brain, "text", GenerationConfig(temperature=0.0, seed=SEED))
        assert isinstance(captions, list)
        first = [group[0] for group in shown.captions]
        given = condition(checkpoint.model.config.text_input, codes, shown.rows, first)
        said = said._replace(captions=captions, of_text=array(generate(checkpoint, {"text": given}, name, mean)))
    if shown.pictures is not None:
        expected, one = (array(generate(checkpoint, brain, "image", how)) * 255 for how in (mean, sample))
        given = condition(checkpoint.model.config.image_input, codes, shown.rows, shown.pictures)
        of_image = array(generate(checkpoint, {"image": given}, name, mean))
        said = said._replace(expected=displayable(expected), sample=displayable(one), of_image=of_image)
    return said


def condition(encoder: str, codes: Codes, rows: Int[Tensor, "n"], itself: object) -> object:
    """What the model is shown: the thing itself, or its features."""
    return itself if encoder == "codes" else codes.features[encoder][rows].float()


def array(values: Tensor | list[str]) -> Float[np.ndarray, "..."]:
    assert isinstance(values, Tensor)
    return values.float().numpy()


def responses_of(said: Said) -> dict[str, Float[np.ndarray, "n v"]]:
    """Expected responses, by what they were expected to."""
    named = {"of the picture": said.of_image, "of the words": said.of_text}
    return {name: values for name, values in named.items() if values is not None}


def correlations(shown: Shown, values: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n"]:
    """r across sites between measured and expected responses, a stimulus each."""
    return np.einsum("nv,nv->n", unit(shown.responses, axis=1), unit(values, axis=1))


def lines_of(log: Path) -> list[dict[str, Any]]:
    """The lines of a log that is being written."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


# ---------------------------------------------------------------------------------------------------- drawing


def named(file: Path) -> str:
    return f"Step {int(file.stem.removeprefix('step-')):,}"


def smaller(png: bytes) -> bytes:
    """A picture as a JPEG that many fit of into one page."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((EARLIER, 10 * EARLIER))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=80)
    return file.getvalue()


def words_of(said: Said, shown: Shown, row: int, r: Mapping[str, float]) -> list[tuple[str, dict[str, Any]]]:
    """Lines about one stimulus, with their style: what was said, what people said, how well responses are expected."""
    pale = {"size": 9, "color": "#667080"}
    lines: list[tuple[str, dict[str, Any]]] = []
    if said.captions is not None and shown.captions is not None:
        lines += [(line, {"size": 11, "weight": "bold"}) for line in wrapped(said.captions[row] or "(nothing)", 3)]
        lines += [(line, pale) for line in wrapped(f"true: {shown.captions[row][0]}", 3)]
    lines += [(f"response expected {name}: r {value:.2f}", {"size": 9}) for name, value in r.items()]
    return lines


def wrapped(text: str, lines: int) -> list[str]:
    return textwrap.wrap(text, CHARACTERS, max_lines=lines, placeholder=" …") or [""]


def write(figure: "Figure", left: float, top: float, text: str, **style: Any) -> None:
    """Text at a place given in inches from the upper left; "$" is a dollar, not a formula."""
    wide, high = figure.get_size_inches()
    figure.text(left / wide, 1 - top / high, text, **{"va": "center", "color": INK, "parse_math": False, **style})


def axes_at(figure: "Figure", left: float, top: float, wide: float, high: float) -> "Axes":
    """Axes at a place given in inches from the upper left."""
    whole_wide, whole_high = figure.get_size_inches()
    axes = figure.add_axes((left / whole_wide, 1 - (top + high) / whole_high, wide / whole_wide, high / whole_high))
    axes.set_axis_off()
    return axes
