"""The figures of docs/guide/how-it-works.md, and the map of docs/guide/first-hour.md.

    python docs/figures.py                               diagrams, which need no data
    python docs/figures.py runs/demo/run                 those, and figures of a finished demo: its run, its dataset

Enters: the laptop recipe, whose sizes the diagrams show, and a run. Leaves: diagrams (docs/images/inside-*.svg) and
figures of data (inside-*.png, first-hour-*.png). The same run on the same machine gives the same bytes. Colours are
those of Okabe & Ito (2008), which differ for colour-blind eyes, too; all have a white ground, for dark pages.
"""

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from scipy.spatial import cKDTree

from brainjanus import recipes
from brainjanus.core.vocabulary import CONTROLS
from brainjanus.data.dataset import Dataset
from brainjanus.data.truth import noise_free
from brainjanus.evaluate.brain import voxel_r
from brainjanus.evaluate.cortex import DPI, draw_maps
from brainjanus.generate import GenerationConfig
from brainjanus.model.draft import GUESS_CHANNELS
from brainjanus.run import Run
from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.tokenizers.vision import GRID
from brainjanus.train.draft import MOST_GUESSED

Array: TypeAlias = np.ndarray

IMAGES = Path(__file__).parent / "images"
WIDTH = 7.0  # inches: a page shows some 700 pixels
RESOLUTIONS, LARGEST = (150, 130, 110), 200_000  # dots an inch; bytes of a file
INK, PALE = "#222222", "#777777"
COLOURS = {"control": "#BBBBBB", "text": "#F0E442", "image": "#56B4E9", "brain": "#D55E00"}
LIGHT = {"control": "#E6E6E6", "text": "#FBF7C2", "image": "#CDE8F8", "brain": "#F7D5BC"}
STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "brainjanus",
    "svg.fonttype": "path",
    "axes.edgecolor": INK,
    "text.color": INK,
}
SENTENCE = "a face with white hair on the beach"
OUTLINED, SIDES = ("V1", "FFA"), ("medial", "ventral")  # of the maps
EXAMPLE_SITES, EXAMPLE_WORDS = 1600, 12  # of the diagrams: about those of the demo


@dataclass(frozen=True)
class Sizes:
    """How long the blocks of a sequence are."""

    codes: int  # of a response
    read: int  # positions that a response has as a condition
    features: int  # of a picture
    picture: int  # codes of a picture
    guess: int  # of what a response lets guess of its stimulus
    words: int  # codes of a caption


def sizes(config: recipes.RunConfig) -> Sizes:
    codes = -(-EXAMPLE_SITES // config.brain_tokenizer.patch_size)
    return Sizes(
        codes=codes,
        read=-(-codes // config.omni.brain_fold),
        features=(GRID // 2) ** 2,
        picture=config.image_tokenizer.codes_per_side**2,
        guess=MOST_GUESSED // GUESS_CHANNELS,
        words=EXAMPLE_WORDS,
    )


# ---------------------------------------------------------------------------------------------------- diagrams


def canvas(height_inches: float) -> tuple[Figure, Axes]:
    """A page whose units are inches, from the upper left."""
    figure = Figure((WIDTH, height_inches), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height_inches, 0))
    axes.axis("off")
    return figure, axes


def write(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "color": INK, "linespacing": 1.25, **style})


def headline(axes: Axes, y: float, text: str, x: float = 0.15) -> None:
    write(axes, x, y, text, ha="left", weight="bold")


def remark(axes: Axes, y: float, text: str, x: float = 0.15) -> None:
    write(axes, x, y, text, ha="left", fontsize=8, color=PALE)


def box(axes: Axes, x: float, y: float, wide: float, high: float, text: str = "", **style: object) -> None:
    """A rectangle from its upper left, with text in its middle."""
    own = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.8, **style}
    size, bold, hatch = own.pop("fontsize", 9), own.pop("weight", "normal"), own.pop("hatch", None)
    colour = "white" if own["facecolor"] == COLOURS["brain"] else INK
    axes.add_patch(Rectangle((x, y), wide, high, **own))
    ground = []
    if hatch:  # paler than the frame, and not through the words
        axes.add_patch(Rectangle((x, y), wide, high, fill=False, hatch=hatch, edgecolor=PALE, linewidth=0, alpha=0.6))
        ground = [withStroke(linewidth=3, foreground=own["facecolor"])]
    write(axes, x + wide / 2, y + high / 2, text, fontsize=size, weight=bold, color=colour, path_effects=ground)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **style: object) -> None:
    own = {
        "arrowstyle": "-|>",
        "mutation_scale": 9,
        "color": INK,
        "linewidth": 0.9,
        "shrinkA": 0,
        "shrinkB": 0,
        **style,
    }
    axes.add_patch(FancyArrowPatch(start, end, **own))


def draw_tokens() -> Figure:
    """A response on its way to tokens. The values are drawn at random."""
    config = recipes.laptop()
    brain = config.brain_tokenizer
    rng = np.random.default_rng(4)
    figure, axes = canvas(3.75)
    top, high, left, wide = 0.62, 0.95, (0.15, 1.55, 2.95, 4.35, 5.75), 1.1
    names = ("betas", "z-scored", "in cortical order", "latents", "codes")
    for x, name in zip(left, names, strict=True):
        write(axes, x + wide / 2, 0.3, name, weight="bold")
    for x in left[:-1]:
        arrow(axes, (x + wide + 0.04, top + high / 2), (x + wide + 0.26, top + high / 2))

    offset, spread = rng.normal(3, 2, 24), rng.uniform(0.5, 2, 24)
    zscored = rng.normal(size=(8, 24))
    for x, values, limit in ((left[0], zscored * spread + offset, 7), (left[1], zscored, 2.5)):
        extent = (x, x + wide, top + high, top)
        axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=extent, aspect="auto", interpolation="none")
    row = np.array([-1.9, -1.4, -1.6, -0.8, -0.3, 0.2, 0.5, 0.1, 0.9, 1.6, 1.2, 2.0])
    step = wide / 3
    for patch in range(3):
        for site in range(4):
            y = top + site * high / 4
            colour = matplotlib.colormaps["RdBu_r"]((row[4 * patch + site] + 2.5) / 5)
            axes.add_patch(Rectangle((left[2] + patch * step + 0.03, y), step - 0.06, high / 4, facecolor=colour))
        edge = Rectangle((left[2] + patch * step + 0.03, top), step - 0.06, high, fill=False, edgecolor=INK)
        axes.add_patch(edge)

    x = left[3]
    box(axes, x, top, wide, high)
    book = np.column_stack([x + rng.uniform(0.08, wide - 0.08, 26), top + rng.uniform(0.08, high - 0.08, 26)])
    axes.plot(*book.T, "o", markersize=2.8, color=PALE)
    for number, here in enumerate(((0.3, 0.28), (0.62, 0.66), (0.88, 0.3))):
        latent = np.array([x + here[0], top + here[1]])
        nearest = book[np.square(book - latent).sum(axis=1).argmin()]
        axes.plot(*latent, "x", markersize=6, color=COLOURS["brain"], markeredgewidth=1.6)
        axes.plot(*nearest, "o", markersize=4.6, color=INK)
        axes.plot(*np.column_stack([latent, nearest]), color=COLOURS["brain"], linewidth=0.9)
        code = (17, 203, 88)[number]
        box(axes, left[4] + number * step + 0.02, top + 0.3, step - 0.04, 0.35, str(code), facecolor=COLOURS["brain"])

    notes = (
        "trials x sites,\nas a GLM gives them",
        "per site, with training\ntrials alone",
        f"patches of {brain.patch_size} sites\n(here: 4)",
        f"{brain.quantizer.dim} numbers a patch; the\nnearest codebook vector",
    )
    write(axes, left[4] + wide / 2, top + 0.14, f"one of {brain.quantizer.num_codes} a patch", fontsize=8, color=PALE)
    for x, note in zip(left, notes, strict=False):
        write(axes, x + wide / 2, top + high + 0.24, note, fontsize=8, color=PALE)

    y = 2.78
    ranges = (
        ("control", 1.0, f"{len(CONTROLS)} and one\na subject"),
        ("text", 1.9, f"up to {config.text_tokenizer.num_codes}\npieces of words"),
        ("image", 1.9, f"{config.image_tokenizer.quantizer.num_codes}\ncodes of pictures"),
        ("brain", 1.9, f"{brain.quantizer.num_codes}\ncodes of patches"),
    )
    x = 0.15
    headline(axes, 2.42, "the joint vocabulary: each kind of token has a range of its own")
    for name, width, note in ranges:
        box(axes, x, y - 0.14, width, 0.34, name, facecolor=COLOURS[name], weight="bold")
        write(axes, x + width / 2, y + 0.46, note, fontsize=8, color=PALE)
        x += width
    arrow(
        axes, (left[4] + wide / 2, top + 0.7), (left[4] + wide / 2, y - 0.17), color=COLOURS["brain"],
        linestyle=(0, (3, 2)),
    )  # fmt: skip
    return figure


def draw_sequences() -> Figure:
    """Which blocks a sequence has, for six of the tasks."""
    n = sizes(recipes.laptop())
    figure, axes = canvas(4.6)
    features, guess = ("image", "features", n.features, "read"), ("text", "guess", n.guess, "read")
    words, told = ("text", "caption", n.words, "codes"), ("text", "caption", n.words, "target")
    first, second = (("brain", name, n.read, "read") for name in ("subj01", "subj02"))
    response, other = (("brain", name, n.codes, "target") for name in ("subj01", "subj02"))
    rows = (
        ("a picture to a response", (features, response)),
        ("a picture and words to a response", (features, words, response)),
        ("a response to a caption", (first, guess, told)),
        ("a response to a picture", (first, guess, ("image", "picture", n.picture, "target"))),
        ("one brain to another", (first, (*second[:3], "draft"), other)),
        ("a part of a brain to all of it", ((*first[:3], "filled"), response)),
    )
    kinds = {
        "codes": {},
        "read": {},
        "draft": {"hatch": "////", "linestyle": "--"},
        "filled": {"hatch": "//", "linestyle": "--"},
        "target": {"linewidth": 2.2, "weight": "bold"},
    }
    y = 0.25
    for title, blocks in rows:
        headline(axes, y, title)
        x = 0.15
        box(axes, x, y + 0.13, 0.42, 0.3, "begin", facecolor=COLOURS["control"], fontsize=8)
        x += 0.45
        for modality, name, length, kind in blocks:
            wide = 0.045 * length + 0.35
            box(axes, x, y + 0.13, 0.08, 0.3, facecolor=COLOURS["control"])
            ground = (COLOURS if kind in ("codes", "target") else LIGHT)[modality]
            box(axes, x + 0.09, y + 0.13, wide, 0.3, f"{name} {length}", facecolor=ground, fontsize=8, **kinds[kind])
            x += wide + 0.12
        y += 0.6

    y = 3.95
    legend = (
        ({"facecolor": COLOURS["control"]}, "control token"),
        ({"facecolor": "#999999"}, "codes"),
        ({"facecolor": "#F2F2F2"}, "vectors that are read"),
        ({"facecolor": "#F2F2F2", **kinds["draft"]}, "draft, in part or whole"),
        ({"facecolor": "#999999", **kinds["target"]}, "target: codes"),
    )
    x = 0.15
    for style, name in legend:
        box(axes, x, y - 0.09, 0.2, 0.18, **style)
        write(axes, x + 0.27, y, name, ha="left", fontsize=8)
        x += 0.38 + 0.065 * len(name)
    text = (
        f"Numbers: positions, for a subject of {EXAMPLE_SITES:,} sites and a caption of {n.words} codes.\n"
        "A narrow grey token opens each block; that of a brain says whose it is."
    )
    remark(axes, y + 0.36, text)
    return figure


def draw_estimates() -> Figure:
    """One pass with the target hidden, and samples, code by code. The probabilities are drawn at random."""
    rng = np.random.default_rng(5)
    figure, axes = canvas(3.55)
    logits = rng.normal(size=(4, 6)) * 1.2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    drawn = [int(rng.choice(6, p=share)) for share in shares]
    for left, sampled in ((0.15, False), (3.65, True)):
        title = "plausible: code by code" if sampled else "expected: one pass, all codes hidden"
        headline(axes, 0.22, title, left)
        box(axes, left, 0.5, 0.85, 0.32, "conditions", facecolor=LIGHT["image"], fontsize=8)
        box(axes, left, 1.0, 3.2, 0.3, "transformer", facecolor="#F2F2F2")
        for place, share in enumerate(shares):
            x = left + 1.0 + place * 0.55
            shown = "opens" if place == 0 else str(drawn[place - 1]) if sampled else "?"
            ground = COLOURS["control"] if place == 0 else COLOURS["brain"] if sampled else "white"
            box(axes, x, 0.5, 0.42, 0.32, shown, facecolor=ground, fontsize=8)
            arrow(axes, (x + 0.21, 0.83), (x + 0.21, 0.98))
            arrow(axes, (x + 0.21, 1.32), (x + 0.21, 1.45))
            for code, high in enumerate(0.55 * share / shares.max()):
                colour = LIGHT["brain"] if sampled and code != drawn[place] else COLOURS["brain"]
                axes.add_patch(Rectangle((x + 0.07 * code, 2.05 - high), 0.058, high, facecolor=colour))
            axes.plot([x, x + 0.42], [2.05, 2.05], color=INK, linewidth=0.8)
            arrow(axes, (x + 0.21, 2.1), (x + 0.21, 2.3))
            if not sampled:
                box(axes, x, 2.32, 0.42, 0.3, "Σ p v", facecolor=LIGHT["brain"], fontsize=8)
                continue
            box(axes, x, 2.32, 0.42, 0.3, str(drawn[place]), facecolor=COLOURS["brain"], fontsize=8)
            if place < 3:  # behind the transformer, to where it enters
                way = {"color": COLOURS["brain"], "linestyle": (0, (3, 2)), "linewidth": 0.9, "zorder": 0.5}
                axes.plot([x + 0.42, x + 0.485, x + 0.485], [2.47, 2.47, 0.66], **way)
                arrow(axes, (x + 0.48, 0.66), (x + 0.55, 0.66), color=COLOURS["brain"], mutation_scale=6)
        remark(axes, 1.8, "p(code)", left)
        taken = "one is drawn" if sampled else "mean of the\nvectors"
        remark(axes, 2.47, taken, left)
        arrow(axes, (left + 2.03, 2.65), (left + 2.03, 2.83))
        box(axes, left, 2.85, 3.2, 0.3, "the tokenizer's decoder", facecolor="#F2F2F2")
        end = "a plausible response; others with other seeds" if sampled else "the expected response"
        write(axes, left + 1.6, 3.33, end, fontsize=8.5)
    return figure


def draw_drafts() -> Figure:
    """How the linear expert and the transformer answer together."""
    figure, axes = canvas(4.3)
    headline(axes, 0.22, "from a picture or words: side by side, the transformer is not told")
    box(axes, 0.15, 0.7, 1.25, 0.62, "features,\nwords", facecolor=LIGHT["image"])
    box(axes, 2.0, 0.45, 1.75, 0.46, "linear expert\n(ridge)", facecolor="#F2F2F2", fontsize=8.5)
    box(axes, 2.0, 1.1, 1.75, 0.46, "transformer,\none pass", facecolor="#F2F2F2", fontsize=8.5)
    box(axes, 4.15, 0.45, 0.8, 0.46, "draft", facecolor=LIGHT["brain"], hatch="////", linestyle="--", fontsize=8.5)
    box(axes, 4.15, 1.1, 0.8, 0.46, "model", facecolor=LIGHT["brain"], fontsize=8.5)
    box(axes, 5.45, 0.72, 1.4, 0.58, "w model +\n(1 - w) draft", facecolor=COLOURS["brain"], fontsize=8.5)
    for y in (0.68, 1.33):
        arrow(axes, (1.42, 1.01), (1.98, y))
        arrow(axes, (3.77, y), (4.13, y))
        arrow(axes, (4.97, y), (5.43, 1.01))
    text = (
        "w: one weight a subject and kind of condition, by least squares on held-out stimuli, less one standard error"
    )
    write(axes, 0.15, 1.8, text, ha="left", fontsize=8, color=PALE)

    y = 2.2
    headline(axes, y, "from a brain, or a part of one: the transformer starts from the draft")
    box(axes, 0.15, y + 0.62, 1.25, 0.62, "another brain,\nor a part", facecolor=LIGHT["brain"], fontsize=8.5)
    box(axes, 2.0, y + 0.3, 1.1, 0.46, "Gaussian,\nlinear map", facecolor="#F2F2F2", fontsize=8.5)
    box(axes, 3.4, y + 0.3, 0.75, 0.46, "draft", facecolor=LIGHT["brain"], hatch="////", linestyle="--", fontsize=8.5)
    box(axes, 2.0, y + 1.12, 2.15, 0.46, "transformer,\none pass", facecolor="#F2F2F2", fontsize=8.5)
    box(axes, 5.2, y + 0.64, 1.65, 0.58, "draft + w\n(model - draft)", facecolor=COLOURS["brain"], fontsize=8.5)
    arrow(axes, (1.42, y + 0.93), (1.98, y + 0.53))
    arrow(axes, (1.42, y + 0.93), (1.98, y + 1.35))
    arrow(axes, (3.12, y + 0.53), (3.38, y + 0.53))
    arrow(axes, (3.6, y + 0.78), (3.6, y + 1.1))
    arrow(axes, (4.17, y + 0.53), (5.18, y + 0.86))
    arrow(axes, (4.17, y + 1.35), (5.18, y + 1.0))
    text = (
        "What is shown of the draft: itself, as one more condition, marked as not measured; which codes it makes\n"
        "likely, added to the logits; and what codes cannot hold of it, added to what is decoded from them."
    )
    remark(axes, y + 1.85, text)
    return figure


# ---------------------------------------------------------------------------------------------------- a run


class Shown(NamedTuple):
    """A finished run, the dataset that it was trained on, and whom the figures show."""

    run: Run
    dataset: Dataset
    subject: str

    @property
    def tokenizer(self) -> BrainTokenizer:
        return self.run.checkpoint.tokenizers.brain


def put(axes: Axes, picture: Array, x: float, y: float, wide: float) -> float:
    """A picture of this width, in inches, from its upper left; returns how high it is."""
    high = wide * picture.shape[0] / picture.shape[1]
    axes.imshow(picture, extent=(x, x + wide, y + high, y), aspect="auto", interpolation="antialiased")
    return high


def put_cortex(axes: Axes | None, png: bytes, y: float) -> float:
    """A drawn map without its empty margin, in its own size, in the middle; returns how high it is. axes: None only
    measures."""
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    full = (picture < 250).any(axis=2)
    rows, columns = np.flatnonzero(full.any(axis=1)), np.flatnonzero(full.any(axis=0))
    picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    wide = min(picture.shape[1] / DPI, WIDTH - 0.3)
    if axes is None:
        return wide * picture.shape[0] / picture.shape[1]
    return put(axes, picture, (WIDTH - wide) / 2, y, wide)


def groups_of(patch: Array, points_mm: Array) -> Array:
    """A number for each patch that none of its neighbours on the cortex has, as few as will do."""
    near = cKDTree(points_mm).query(points_mm, 7)[1]
    neighbours = {(int(a), int(b)) for a, others in zip(patch, patch[near], strict=True) for b in others if a != b}
    group = np.full(patch.max() + 1, -1)
    for own in range(len(group)):
        taken = {group[b] for a, b in neighbours if a == own} | {group[a] for a, b in neighbours if b == own}
        group[own] = next(number for number in range(len(group)) if number not in taken)
    return group


def draw_patches(shown: Shown) -> Figure:
    """Where the tokens of one subject are at home."""
    space, patch = shown.dataset.space(shown.subject), shown.tokenizer.site_patch(shown.subject).numpy()
    assert space.points_mm is not None
    group = groups_of(patch, space.points_mm)
    palette = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF", "#999999")
    last = len(palette) - 1
    assert group.max() <= last, "more neighbours than colours"
    colours = ListedColormap(palette)
    values = (group[patch] + 0.5) / len(palette)
    drawn = draw_maps(space, {"": values}, categorical=True, outlines=OUTLINED, colours=colours, sides=SIDES)
    figure, axes = canvas(0.55 + put_cortex(None, drawn, 0.42))
    headline(axes, 0.2, f"{shown.subject}: {space.num_sites:,} sites in {len(group)} patches, each the home of a token")
    put_cortex(axes, drawn, 0.42)
    return figure


def draw_response(shown: Shown) -> Figure:
    """A held-out response, its codes, and what is drawn again from them."""
    space, subject = shown.dataset.space(shown.subject), shown.subject
    averages = shown.dataset.averages(subject, "test")
    measured, row = averages.responses, 0
    codes = shown.tokenizer.encode(torch.from_numpy(measured), subject)
    again = shown.tokenizer.decode(codes, subject).numpy()
    truth = noise_free(shown.dataset)[subject]
    near, near_again = (np.corrcoef(values[row], truth[row])[0, 1] for values in (measured, again))
    bits = f"{shown.tokenizer.bits(subject):.0f} bits"
    maps = {
        f"measured, mean of {averages.num_repeats[row]} trials (r with the noise-free response {near:.2f})": measured,
        f"drawn again from its {codes.shape[1]} codes, {bits} (r {near_again:.2f})": again,
        "without noise, as the simulated cortex knows it": truth,
    }
    drawn = draw_maps(space, {name: x[row] for name, x in maps.items()}, outlines=OUTLINED, sides=SIDES)
    figure, axes = canvas(1.3 + put_cortex(None, drawn, 1.2))
    put(axes, shown.dataset.images(averages.stimulus_ids[row : row + 1])[0], 0.15, 0.12, 0.95)
    headline(axes, 0.2, "the picture that was seen, and the codes of the response", 1.25)
    columns = -(-codes.shape[1] // 3)
    for place, code in enumerate(codes[row].tolist()):
        x, y = 1.25 + place % columns * 0.32, 0.37 + place // columns * 0.24
        box(axes, x, y, 0.3, 0.22, str(code), facecolor=LIGHT["brain"], linewidth=0.5, fontsize=7.5)
    put_cortex(axes, drawn, 1.2)
    return figure


def draw_answers(shown: Shown) -> Figure:
    """What held-out responses are decoded into: the expectation, guided, and samples."""
    averages, run = shown.dataset.averages(shown.subject, "test"), shown.run
    rows = np.arange(4)
    given = {f"brain:{shown.subject}": torch.from_numpy(averages.responses[rows])}
    sampled = run.estimate(given, "image", GenerationConfig(estimate="sample", num_samples=3, seed=1)).samples
    said = run.generate(given, "text", GenerationConfig(temperature=0))
    columns = {
        "seen": shown.dataset.images([averages.stimulus_ids[row] for row in rows]) / 255,
        "expected": run.generate(given, "image"),
        "guidance 2": run.generate(given, "image", GenerationConfig(guidance=2.0)),
        **{f"sample {number + 1}": sampled[:, number] for number in range(3)},
    }
    step = (WIDTH - 0.3) / len(columns)
    figure, axes = canvas(0.4 + len(rows) * (step + 0.22))
    for column, (name, pictures) in enumerate(columns.items()):
        x = 0.15 + column * step
        write(axes, x + step / 2 - 0.04, 0.2, name, weight="bold")
        for row, picture in enumerate(np.asarray(pictures)):
            put(axes, picture.clip(0, 1), x, 0.38 + row * (step + 0.22), step - 0.08)
    for row, caption in enumerate(said):
        remark(axes, 0.38 + row * (step + 0.22) + step + 0.02, f"said: {caption}")
    return figure


def draw_likelihood(shown: Shown) -> Figure:
    """What the responses to eight held-out pictures add to log p of each of these."""
    averages, many = shown.dataset.averages(shown.subject, "test"), 8
    pictures = shown.dataset.images(averages.stimulus_ids[:many])
    given = {f"brain:{shown.subject}": torch.from_numpy(averages.responses[:many])}
    nats = shown.run.score_candidates(given, "image", pictures).numpy()
    added = nats - shown.run.score_candidates({}, "image", pictures).numpy()
    most = np.abs(added).max()
    figure, axes = canvas(4.6)
    left, top, step = 2.0, 0.85, 0.45
    headline(axes, 0.2, "log p(picture | response) - log p(picture), in nats")
    extent = (left, left + many * step, top + many * step, top)
    drawn = axes.imshow(added, cmap="RdBu_r", vmin=-most, vmax=most, extent=extent, aspect="auto")
    for number, picture in enumerate(pictures):
        put(axes, picture, left + number * step + 0.02, top - 0.44, step - 0.04)
        put(axes, picture, left - 0.44, top + number * step + 0.02, step - 0.04)
        place = (left + int(added[number].argmax()) * step, top + number * step)
        axes.add_patch(Rectangle(place, step, step, fill=False, edgecolor=INK, linewidth=1.8))
    write(axes, 0.75, top + many * step / 2, "the response\nto this picture,\nmean of trials")
    remark(axes, top - 0.2, "which picture was it?")
    axes.set(xlim=(0, WIDTH), ylim=(figure.get_size_inches()[1], 0))
    bar = figure.add_axes((0.85, 0.06, 0.02, 0.74))
    figure.colorbar(drawn, cax=bar).ax.tick_params(labelsize=8)
    remark(axes, top + many * step + 0.1, "framed: what each response adds most to", left)
    return figure


def parts_of(shown: Shown, subject: str, direction: str) -> tuple[dict[str, object], str, Array]:
    """Conditions of all test stimuli, the target, and the sites that are judged."""
    averages, dataset = shown.dataset.averages(subject, "test"), shown.dataset
    judged = np.ones(averages.responses.shape[1], bool)
    rows: dict[str, object] = {}
    if "picture" in direction:
        rows["image"] = dataset.images(averages.stimulus_ids)
    if "words" in direction:
        rows["text"] = [dataset.captions(stimulus)[0] for stimulus in averages.stimulus_ids]
    if direction == "another brain":
        subjects = list(dataset.subjects)
        other = subjects[subjects.index(subject) - 1]
        rows[f"brain:{other}"] = torch.from_numpy(dataset.averages(other, "test").responses)
    if direction == "V1, V2 and V3":
        known = np.any([dataset.space(subject).rois[name] for name in ("V1", "V2", "V3")], axis=0)
        rows[f"part:{subject}"] = torch.from_numpy(np.where(known, averages.responses, np.nan))
        judged = ~known
    return rows, f"brain:{subject}", judged


def draw_ingredients(shown: Shown) -> Figure:
    """What the linear draft, the transformer and their weighed mean reach, by what is given."""
    directions = ("a picture", "words", "a picture and words", "another brain", "V1, V2 and V3")
    drafts = shown.run.checkpoint.drafts
    assert drafts is not None
    found: dict[str, list[list[float]]] = {direction: [] for direction in directions}
    for direction in directions:
        kind = {"a picture": "image", "words": "text", "a picture and words": "image+text", "another brain": "brain"}
        for subject in shown.dataset.subjects:
            conditions, target, judged = parts_of(shown, subject, direction)
            trust = drafts.trust(subject).of(kind.get(direction, "part"))
            averages, fitted = shown.dataset.averages(subject, "test"), float(trust)
            row = []
            for weight in (0.0, 1.0, fitted):
                trust.fill_(weight)
                predicted = shown.run.generate(conditions, target)
                row.append(float(voxel_r(averages.responses, predicted.numpy())[judged].mean()))
            ceiling = shown.dataset.space(subject).noise_ceiling(int(averages.num_repeats[0]))
            assert ceiling is not None
            found[direction].append([*row, float(ceiling[judged].mean())])
    figure = Figure((WIDTH, 3.1), facecolor="white")
    axes = figure.add_axes((0.23, 0.27, 0.73, 0.66))
    marks = (("linear draft", "s", "#0072B2"), ("transformer", "o", "#E69F00"), ("weighed", "D", "#D55E00"))
    for place, direction in enumerate(directions):
        means = np.mean(found[direction], axis=0)
        axes.plot([means[3]] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=1.5)
        for value, shift, (name, mark, colour) in zip(means, (-0.18, 0.0, 0.18), marks, strict=False):
            style = {"markersize": 7, "color": colour, "label": name if place == 0 else None}
            axes.plot(value, place + shift, mark, **style)
    axes.plot([], [], color=INK, linewidth=1.5, label="noise ceiling")
    axes.set_yticks(range(len(directions)), directions)
    axes.invert_yaxis()
    axes.set_xlabel(f"voxel r, mean over sites and {len(shown.dataset.subjects)} subjects, held-out stimuli")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=4, loc="lower center", frameon=False, handletextpad=0.5)
    return figure


def draw_sentence(shown: Shown) -> Figure:
    """The response that is expected to a sentence."""
    space = shown.dataset.space(shown.subject)
    expected = shown.run.generate({"text": [SENTENCE]}, f"brain:{shown.subject}")
    drawn = draw_maps(space, {f'"{SENTENCE}"': np.asarray(expected)[0]}, label="expected response (z)", sides=SIDES)
    figure, axes = canvas(0.3 + put_cortex(None, drawn, 0.1))
    put_cortex(axes, drawn, 0.1)
    return figure


DIAGRAMS = {
    "inside-tokens.svg": draw_tokens,
    "inside-sequences.svg": draw_sequences,
    "inside-estimates.svg": draw_estimates,
    "inside-drafts.svg": draw_drafts,
}
OF_A_RUN = {
    "inside-patches.png": draw_patches,
    "inside-response.png": draw_response,
    "inside-answers.png": draw_answers,
    "inside-likelihood.png": draw_likelihood,
    "inside-ingredients.png": draw_ingredients,
    "first-hour-sentence.png": draw_sentence,
}


def save(figure: Figure, path: Path) -> None:
    """As SVG, or as a PNG of 256 colours, as fine as fits into LARGEST."""
    if path.suffix == ".svg":
        figure.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None})
        return
    for dpi in RESOLUTIONS:
        drawn, file = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, dpi=dpi, facecolor="white")
        palette = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        palette.save(file, format="PNG", optimize=True)
        if file.tell() < LARGEST:
            break
    path.write_bytes(file.getvalue())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a finished run of the demo")
    parser.add_argument("--dataset", type=Path, help="what it was trained on; default: study/dataset beside the run")
    parser.add_argument("--out", type=Path, default=IMAGES)
    args = parser.parse_args(argv)
    with matplotlib.rc_context(STYLE):
        for name, draw in DIAGRAMS.items():
            save(draw(), args.out / name)
        if args.run is None:
            return
        dataset = Dataset.open(args.dataset or args.run.parent / "study" / "dataset")
        shown = Shown(Run.open(args.run), dataset, dataset.subjects[0])
        for name, draw_of in OF_A_RUN.items():
            save(draw_of(shown), args.out / name)


if __name__ == "__main__":
    main()
