"""Ablation of the brain tokenizer: what bits buy. A dataset and a grid enter; a table, a figure and a report leave.

OUT/config.json                 what all cells share
    measured.json               downstream scores of the measured responses: the ceiling
    cells/NAME/tokenizer/       one tokenizer for each codebook size x compression x quantizer x encoder x seed
    cells/NAME/result.json      what it keeps, and what its reconstructions are good for
    ablation.tsv, ablation.json, ablation.png, report.html      all of it; written when every cell is done

A cell is done when its result.json is there: a stopped ablation goes on, and a grid may grow in the same folder.
Source: the ablation of BrainJanus (arXiv 2606.30319), fig. 6. Differs: bits are the axis that all variants share; every
figure stands beside those of PCA with scalar quantization at the same bits, and of the Gaussian rate-distortion bound.
"""

import base64
import csv
import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from html import escape
from itertools import cycle, product
from pathlib import Path
from string import Template
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np

from brainjanus.core.config import read_json, to_dict
from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.processes import check_alone, only_one
from brainjanus.data.dataset import Dataset
from brainjanus.data.truth import noise_free
from brainjanus.evaluate.downstream import DownstreamScore, LinearProbe
from brainjanus.evaluate.extras import Extras
from brainjanus.evaluate.page import PAGE, STYLE
from brainjanus.evaluate.record import SUBJECT_MEAN
from brainjanus.evaluate.score import MAIN_METRICS, ScoreOptions, score
from brainjanus.evaluate.tokenizer import reconstruct, score_tokenizer
from brainjanus.recipes import TokenizerRunConfig, fitting, tokenizer_fitting
from brainjanus.run import different, directions_of, estimators_of, predict, train
from brainjanus.tokenize import train_tokenizer
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.coder import ENCODERS
from brainjanus.tokenizers.folder import SavedTokenizer
from brainjanus.tokenizers.quantizer import QUANTIZERS, make_quantizer

STAGES = 2  # of residual VQ: two codes for a patch of twice the sites, so that nothing but the quantizer differs
Trainer = Callable[[Dataset, Path, TokenizerRunConfig], SavedTokenizer]  # what it trains goes to the folder as well


@dataclass(frozen=True)
class AblationConfig:
    """What is varied, each with each; and what all cells share.

    num_codes: codebook sizes. compression: sites a code stands for. quantizers: vq, residual, fsq, or one that was
    added. encoders: patch, paper, or one that was added. seeds: which of them.
    downstream: what reconstructions are good for: "none", "linear" (ridge; seconds a cell) or "model" (each cell also
    trains the whole model; hours). model_steps: of that model, in each cell. base: everything else of a tokenizer and
    its training.
    """

    num_codes: tuple[int, ...] = (64, 256, 1024)
    compression: tuple[int, ...] = (16, 32, 64, 128)
    quantizers: tuple[str, ...] = ("vq", "residual", "fsq")
    encoders: tuple[str, ...] = ("patch",)
    seeds: tuple[int, ...] = (0,)
    downstream: Literal["none", "linear", "model"] = "linear"
    model_steps: int = 600
    base: TokenizerRunConfig = field(default_factory=TokenizerRunConfig)

    def __post_init__(self) -> None:
        problems = []
        for name in ("num_codes", "compression", "quantizers", "encoders", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                problems.append(f"{name} must be one or more different values, got {list(values)}")
        if self.downstream not in ("none", "linear", "model"):
            problems.append(f"downstream must be none, linear or model, got '{self.downstream}'")
        if self.model_steps < 1:
            problems.append(f"model_steps must be at least 1, got {self.model_steps}")
        named = (*map(ENCODERS.problem, self.encoders), *map(QUANTIZERS.problem, self.quantizers))
        unknown = [problem for problem in named if problem]
        problems += unknown
        for cell in [] if unknown else cells_of(self):  # an unknown name is told once
            try:
                tokenizer_of(cell, self.base.tokenizer)
            except UserError as error:
                problems.append(f"{cell.name}: {str(error).removesuffix(' Correct the config.').rstrip('.')}")
        if problems:
            raise UserError("ablation: " + "; ".join(problems) + ". Correct the config.")


class Cell(NamedTuple):
    """One tokenizer of the grid."""

    encoder: str
    quantizer: str
    num_codes: int
    compression: int
    seed: int

    @property
    def name(self) -> str:
        """A folder's: settings behind an added name may hold what a path must not."""
        made_of = quote(f"{self.encoder}-{self.quantizer}", safe=":=,")
        return f"{made_of}-codes{self.num_codes}-sites{self.compression}-seed{self.seed}"


def cells_of(config: AblationConfig) -> list[Cell]:
    grid = product(config.encoders, config.quantizers, config.num_codes, config.compression, config.seeds)
    return [Cell(*values) for values in grid]


def tokenizer_of(cell: Cell, base: BrainTokenizerConfig) -> BrainTokenizerConfig:
    """The base config with what is varied put in.

    Residual VQ has STAGES codes of the same codebook size for a patch of STAGES times as many sites: the number of
    codes, their alphabet and hence the bits are those of the other quantizers exactly (but for the last, partly filled
    patch), and so is what a sequence model has to learn. The published encoder halves the sites once a level; it gets
    as many of its levels as the compression needs, the last one repeated.
    Raises UserError for what does not exist, and for settings that an added encoder or quantizer does not take.
    """
    stages = STAGES if cell.quantizer == "residual" else 1
    quantizer = replace(
        base.quantizer,
        kind=cell.quantizer,
        num_codes=cell.num_codes,
        stages=stages,
        levels=(),
        # as many numbers for as many sites; fsq has its own
        dim=stages * (BrainTokenizerConfig() if base.quantizer.kind == "fsq" else base).quantizer.dim,
        entropy=base.quantizer.entropy if cell.quantizer == "vq" else 0.0,
    )
    sites = cell.compression * stages
    if cell.quantizer in QUANTIZERS:
        make_quantizer(quantizer)
    if cell.encoder in ENCODERS:
        ENCODERS.check(cell.encoder, quantizer.dim, {})
    if cell.encoder != "paper":
        return replace(base, encoder=cell.encoder, patch_size=sites, quantizer=quantizer)
    levels = max(sites, 1).bit_length()
    if sites != 2 ** (levels - 1):
        raise UserError(
            f"the paper's encoder halves its input once a level: a latent must stand for a power of two of sites, got "
            f"{sites}"
        )
    published = base.paper.multipliers
    multipliers = (*published[:levels], *published[-1:] * (levels - len(published)))
    paper = replace(base.paper, multipliers=multipliers)
    return replace(base, encoder="paper", patch_size=sites, paper=paper, quantizer=quantizer)


def ablate_tokenizer(
    dataset: Dataset | Path | str,
    out: Path | str,
    config: AblationConfig | None = None,
    truth: Path | None = None,
    *,
    trainer: Trainer = train_tokenizer,
) -> Path:
    """Train and score a tokenizer for every cell of the grid, or go on with that; returns the path of the report.

    truth: a folder with the noise-free responses of a simulated study, one SUBJECT.safetensors each; by default the
    `truth` beside the dataset, if there is one. Measured on the mean responses to held-out (test) stimuli.
    Raises UserError if `out` holds something else, or an ablation of other data or with other shared settings, or if
    there are several processes.
    """
    check_alone("ablate tokenizer")
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    out, config = Path(out), config or AblationConfig(base=tokenizer_fitting(dataset))
    known = noise_free(dataset, truth)
    shared = {"downstream": config.downstream, "model_steps": config.model_steps, "base": to_dict(config.base)}
    facts = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "truth": bool(known), "ablation": shared}
    check_folder(out / "config.json", facts, "ablation", "an ablation")
    probes = {subject: LinearProbe(dataset, subject) for subject in dataset.subjects if config.downstream == "linear"}
    cached(out / "config.json", lambda: facts)  # from here on the folder is this ablation's
    with only_one(out / "config.json"):
        run_cells(dataset, out, config, known, probes, trainer)
    return out / "report.html"


def run_cells(
    dataset: Dataset,
    out: Path,
    config: AblationConfig,
    known: Mapping[str, np.ndarray],
    probes: Mapping[str, LinearProbe],
    trainer: Trainer,
) -> None:
    """`ablate_tokenizer`, in a folder of its own."""
    measured = cached(out / "measured.json", lambda: {"downstream": downstream_of(dataset, probes, None)})
    cells = cells_of(config)
    for number, cell in enumerate(cells):
        print(f"ablation: tokenizer {number + 1}/{len(cells)}, {cell.name}", file=sys.stderr, flush=True)
        folder = out / "cells" / cell.name
        make = partial(run_cell, dataset, cell, folder, config, known, probes, trainer)
        cached(folder / "result.json", make)
    done = {path.parent.name: path for path in sorted(out.glob("cells/*/result.json"))}  # earlier grids', too
    names = dict.fromkeys([cell.name for cell in cells] + list(done))
    try:
        rows = [row_of(read_json(done[name]), measured) for name in names]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{out}: expected the results of an ablation in cells/*/result.json and measured.json, got one without "
            f"{error}. A file was edited or damaged: delete it, and run the same command again."
        ) from error
    write(out, dataset, config, rows)


# ---------------------------------------------------------------------------------------------------- one cell


def run_cell(
    dataset: Dataset,
    cell: Cell,
    folder: Path,
    config: AblationConfig,
    truth: Mapping[str, np.ndarray],
    probes: Mapping[str, LinearProbe],
    trainer: Trainer,
) -> dict[str, Any]:
    """Train one tokenizer, or go on with it, and score it."""
    settings = replace(config.base, seed=cell.seed, tokenizer=tokenizer_of(cell, config.base.tokenizer))
    start = time.monotonic()
    tokenizer = trainer(dataset, folder / "tokenizer", settings).tokenizer
    seconds = time.monotonic() - start
    scores = score_tokenizer(tokenizer, dataset, "test", truth or None)
    downstream = downstream_of(dataset, probes, tokenizer)
    if config.downstream == "model":
        downstream = model_scores(dataset, folder, cell.seed, config.model_steps)
    return {
        "cell": cell._asdict(),
        "records": [asdict(record) for record in scores.records],
        "downstream": downstream,
        "training_sec": round(seconds, 1),  # of this process: less for a training that was gone on with
    }


def downstream_of(
    dataset: Dataset, probes: Mapping[str, LinearProbe], tokenizer: BrainTokenizer | None
) -> list[dict[str, Any]]:
    """Linear scores of each subject's averages, measured or (with a tokenizer) drawn again from their codes."""
    found = []
    for subject, probe in probes.items():
        train, held = (dataset.averages(subject, split).responses for split in ("train", "test"))
        if tokenizer is not None:
            train, held = (reconstruct(tokenizer, values, subject).values for values in (train, held))
        found += [{"subject": subject, **one._asdict()} for one in probe.score(train, held)]
    return found


def model_scores(dataset: Dataset, folder: Path, seed: int, steps: int) -> list[dict[str, Any]]:
    """The main scores of the whole model, trained in few steps on this tokenizer's codes."""
    config = fitting(dataset, seed)
    training = replace(config.training, optim=replace(config.training.optim, steps=steps))
    checkpoint = train(dataset, folder / "model", replace(config, training=training), tokenizer=folder / "tokenizer")
    extras = Extras(java=False)  # METEOR and SPICE are not among the main metrics
    options = ScoreOptions(seed=seed, baseline=False, permutations=1, resamples=1, extras=extras)
    found = []
    for direction, subject in product(directions_of(checkpoint), dataset.subjects):
        estimator = estimators_of(direction, seed)[0]
        records = score(dataset, predict(checkpoint, dataset, direction, subject, estimator), options).records
        found += [
            {"subject": subject} | DownstreamScore(direction, r.metric, r.value, r.floor, r.n)._asdict()
            for r in records
            if r.roi is None and r.floor is not None and r.metric in MAIN_METRICS[direction][:2]
        ]
    return found


# ---------------------------------------------------------------------------------------------------- files


def check_folder(told: Path, facts: Mapping[str, Any], what: str, held: str) -> None:
    """Make sure that a folder is new, or that of this ablation or search, which the file `told` in it knows by its
    facts. What is not among them, the grid itself, is free to grow. what, held: its name in a sentence."""
    out = told.parent
    if told.exists():
        if changed := different(read_json(told), facts):
            raise UserError(
                f"{out}: expected the data and the settings that this {what} was started with, got others "
                f"({'; '.join(changed[:4])}). Go on with the old ones, or choose another --out."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: expected an empty or a new folder, or one that holds {held}, got something else. "
            "Choose another --out: nothing there was touched."
        )


def cached(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, read back if it was made before."""
    if path.exists():
        return read_json(path)
    made = make()
    with written_beside(path) as beside:
        beside.write_text(json.dumps(made, indent=1, allow_nan=False))
    return made


def row_of(result: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the table, means over subjects: each figure, and as 'figure.floor' and so on what stands beside it.

    The ceiling of a downstream score is the same score of the measured responses.
    """
    row: dict[str, Any] = dict(result["cell"])
    for record in result["records"]:
        if (record["subject"], record["roi"]) == (SUBJECT_MEAN, None):
            row[record["metric"]] = record["value"]
            beside = ("floor", "baseline", "bound", "ceiling")
            row |= {f"{record['metric']}.{name}": record[name] for name in beside if record[name] is not None}
    for column, values in _by_column(result["downstream"]).items():
        row[column] = float(np.mean([one["value"] for one in values]))
        row[f"{column}.floor"] = float(np.mean([one["floor"] for one in values]))
    for column, values in _by_column(measured["downstream"]).items():
        row[f"{column}.ceiling"] = float(np.mean([one["value"] for one in values]))
    return row | {"training_sec": result["training_sec"]}


def _by_column(downstream: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    columns: dict[str, list[Mapping[str, Any]]] = {}
    for one in downstream:
        columns.setdefault(f"{one['direction']}.{one['metric']}", []).append(one)
    return columns


def write(
    out: Path,
    dataset: Dataset,
    config: AblationConfig,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """All that is made of the cells; each file whole or not at all."""
    facts = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "config": to_dict(config)}
    with written_beside(out / "ablation.json") as beside:
        beside.write_text(json.dumps({**facts, "rows": rows}, indent=1))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with written_beside(out / "ablation.tsv") as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", restval="")
        table.writeheader()
        table.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    png = draw(rows, f"{dataset.name}: what a brain tokenizer keeps")
    with written_beside(out / "ablation.png") as beside:
        beside.write_bytes(png)
    with written_beside(out / "report.html") as beside:
        beside.write_text(page(dataset, config, rows, png), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- what is drawn

COLOURS = {"vq": "#0072b2", "residual": "#d55e00", "fsq": "#009e73"}  # Okabe & Ito: for colour-blind eyes
MORE_COLOURS = ("#cc79a7", "#e69f00", "#56b4e9")  # of quantizers that were added
MARKERS = "osD^vP*X"  # one for each compression
DASHES: dict[str, Any] = {"patch": "-", "paper": (0, (4, 2))}
MORE_DASHES = ((0, (1, 1)), (0, (4, 1, 1, 1)))  # of encoders that were added
INK, PALE = "#222222", "#8a8a8a"
BESIDE = {"floor": (PALE, ":"), "baseline": (INK, "--"), "bound": (INK, ":"), "ceiling": ("#14804a", "-")}
TRAINED = {"floor": "shuffled", "ceiling": "measured responses"}
# column -> title, and what is drawn beside it
PANELS = {
    "mse": (
        "distortion (MSE; lower is better)",
        {"floor": "mean response, no bits", "baseline": "PCA + scalar quantization", "bound": "Gaussian bound"},
    ),
    "voxel_r_truth": (
        "voxel r with the noise-free truth",
        {"baseline": "PCA + scalar quantization", "ceiling": "measured averages"},
    ),
    "voxel_r": (
        "voxel r with the measured averages",
        {"baseline": "PCA + scalar quantization", "ceiling": "noise ceiling"},
    ),
    "used": ("share of the codebook in use", {}),
    "brain->image.two_way": ("brain->image: two-way identification", TRAINED),
    "brain->image.feature_two_way": ("brain->image: two-way, features", TRAINED),
    "brain->text.cider": ("brain->text: CIDEr", TRAINED),
    "brain->text.content_f1": ("brain->text: content-word F1", TRAINED),
    "image->brain.voxel_r": ("image->brain: voxel r", TRAINED),
    "text->brain.voxel_r": ("text->brain: voxel r", TRAINED),
}
STAND_IN = {  # drawn only where the first is missing
    "brain->image.feature_two_way": "brain->image.two_way",
    "brain->text.content_f1": "brain->text.cider",
}


def draw(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Every figure against the bits of a response: a curve for each quantizer and compression, means over seeds (PNG).

    Where one codebook size was tried only, a curve joins the compressions instead.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = [name for name in PANELS if any(name in row for row in rows)]
    panels = [name for name in panels if STAND_IN.get(name) not in panels]
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure((1 + 3.6 * columns, 0.9 + 2.9 * lines), dpi=130, layout="constrained")
    quantizers, encoders = (list(dict.fromkeys(row[name] for row in rows)) for name in ("quantizer", "encoder"))
    colours, dashes_of = looks(quantizers, COLOURS, MORE_COLOURS), looks(encoders, DASHES, MORE_DASHES)
    compressions = sorted({row["compression"] for row in rows})
    markers = {sites: MARKERS[place % len(MARKERS)] for place, sites in enumerate(compressions)}
    for place, name in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        heading, beside = PANELS[name]
        for reference, label in beside.items():
            points = sorted({(row["bits"], row[f"{name}.{reference}"]) for row in rows if f"{name}.{reference}" in row})
            if points:
                colour, dashes = BESIDE[reference]
                axes.plot(*zip(*points, strict=True), color=colour, ls=dashes, lw=1.1, label=label, zorder=1)
        for (encoder, quantizer), curve in curves_of(rows, name):
            colour = colours[quantizer]
            middle = [float(np.mean(point.values)) for point in curve]
            bits = [point.bits for point in curve]
            axes.plot(bits, middle, color=colour, ls=dashes_of[encoder], lw=1.3, alpha=0.8)
            axes.vlines(bits, [min(p.values) for p in curve], [max(p.values) for p in curve], color=colour, lw=1)
            for point, mean in zip(curve, middle, strict=True):
                marker = markers[point.compression]
                axes.plot(point.bits, mean, marker=marker, color=colour, ms=5, mec="white", mew=0.5)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_title(heading, fontsize=9, color=INK, loc="left")
        axes.set_xlabel("bits per response", fontsize=8, color=INK)
        axes.tick_params(labelsize=7.5, colors=INK, length=2.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PALE)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False, labelcolor=INK)
    key = [Line2D([], [], color=colours[name], label=name) for name in quantizers]
    key += [Line2D([], [], color=PALE, ls=dashes_of[name], label=f"{name} encoder") for name in encoders]
    key += [
        Line2D([], [], color=PALE, marker=markers[sites], ls="", label=f"{sites} sites a code")
        for sites in compressions
    ]
    figure.legend(handles=key, loc="outside lower left", ncols=min(len(key), 9), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11, color=INK, weight="bold", x=0.01, ha="left")
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()


def looks(names: Sequence[str], known: Mapping[str, Any], more: Sequence[Any]) -> dict[str, Any]:
    """How each name is drawn: as it always is, or, where it was added, in the next look of `more`."""
    added = [name for name in names if name not in known]
    return {**known, **dict(zip(added, cycle(more), strict=False))}


class Point(NamedTuple):
    """One place in the grid; values: of its seeds."""

    bits: float
    compression: int
    values: list[float]


def curves_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[tuple[str, str], list[Point]]]:
    """((encoder, quantizer), points by bits) for each quantizer and compression; see `draw`."""
    one_size = len({row["num_codes"] for row in rows}) == 1
    curves: dict[tuple, dict[tuple, Point]] = {}
    for row in rows:
        if name in row:
            curve = curves.setdefault((row["encoder"], row["quantizer"], one_size or row["compression"]), {})
            point = Point(row["bits"], row["compression"], [])
            curve.setdefault((row["num_codes"], row["compression"]), point).values.append(row[name])
    return [(curve[:2], sorted(points.values())) for curve, points in curves.items()]


TABLE = {  # columns of the report's table; the .tsv has all of them
    "encoder": "encoder", "quantizer": "quantizer", "num_codes": "codebook", "compression": "sites a code",
    "seed": "seed", "bits": "bits", "mse": "MSE", "mse.baseline": "PCA + SQ", "mse.bound": "bound", "mse.floor": "mean",
    "voxel_r_truth": "r with truth", "voxel_r_truth.ceiling": "measured's", "voxel_r": "voxel r", "used": "used",
    "perplexity": "perplexity", **{name: PANELS[name][0] for name in PANELS if "->" in name},
    "training_sec": "training, s",
}  # fmt: skip
DOWNSTREAM = {
    "none": "Downstream scores were left out.",
    "linear": "Downstream: ridge on reconstructed training responses reads reconstructed held-out ones; encoders are "
    "fitted to reconstructed training responses and held against measured held-out averages. The ceiling is the same "
    "without a tokenizer; the floor pairs predictions with other stimuli.",
    "model": "Downstream: the whole model, trained on the codes of each tokenizer for a few steps (model_steps).",
}


def page(dataset: Dataset, config: AblationConfig, rows: Sequence[Mapping[str, Any]], png: bytes) -> str:
    """The report: the figure, the table, and what was done."""
    shown = [name for name in TABLE if any(name in row for row in rows)]
    head = "".join(f"<th>{escape(TABLE[name])}</th>" for name in shown)
    ordered = sorted(rows, key=lambda row: (row["bits"], row["mse"]))
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in shown) + "</tr>" for row in ordered)
    facts = {
        "Dataset": f"{escape(dataset.name)} <small>{dataset.fingerprint[:12]}</small>",
        "Subjects": escape(", ".join(f"{s} ({dataset.space(s).num_sites:,} sites)" for s in dataset.subjects)),
        "Scored on": "mean responses to held-out (test) stimuli; figures are means over subjects",
        "Tokenizers": f"{len(rows)}, each trained for {config.base.training.steps:,} steps",
    }
    figure = f"""<dl class="facts">{"".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())}</dl>
<img class="whole" alt="scores against bits per response" src="data:image/png;base64,{base64.b64encode(png).decode()}">
<p>{DOWNSTREAM[config.downstream]}</p><p>Residual quantization has {STAGES} codes for a patch of {STAGES} times the
sites, so that its bits are those of the others. A bar is the range over seeds.</p>"""
    table = f"""<p>By bits, the lowest distortion first. <code>ablation.tsv</code> has more columns.</p>
<div class="wide"><table><tr>{head}</tr>{body}</table></div>"""
    again = f"<pre>{escape(json.dumps(to_dict(config), indent=1))}</pre>"
    sections = (("figure", "What bits buy", figure), ("table", "All tokenizers", table), ("config", "Settings", again))
    return Template(PAGE).substitute(
        title=f"Tokenizer ablation: {escape(dataset.name)}",
        style=STYLE
        + "body { max-width: 1280px; } .whole { width: 100%; } .wide { overflow-x: auto; font-size: .8rem; }"
        ".wide th { white-space: normal; vertical-align: bottom; min-width: 3.4rem; }"
        ".wide th:nth-child(n) { width: auto; }",
        modality=escape(dataset.modality),
        contents="".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections),
        body="".join(f'<section id="{name}"><h2>{heading}</h2>{text}</section>' for name, heading, text in sections),
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 or value.is_integer() else f"{value:.3f}"
    return "" if value is None else escape(str(value))
