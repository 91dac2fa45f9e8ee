"""Search for a learning rate. A dataset and some rates enter; the best of them leaves, in a config to train with.

OUT/tune.json               what all rates share
    shared/                 tokenizers and codes, made once
    cells/RATE-SEED/        log.jsonl of one short training, and result.json when it is done
    rates.tsv, rates.png    losses on held-out stimuli, by rate
    config.json             the settings, with the best rate put in: `brainjanus train --config OUT/config.json`

Every rate trains the model on its whole schedule, scaled to a few steps. A rate that is far behind after a third of
them is stopped; one whose loss jumps, or is not finite, has diverged. The test split is no part of this. A search that
was stopped goes on, and rates and seeds may be added in the same folder.
"""

import csv
import io
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import nn

from brainjanus.ablate import cached, check_folder
from brainjanus.core.config import read_json, to_dict
from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.processes import check_alone, only_one
from brainjanus.data.dataset import Dataset
from brainjanus.recipes import RunConfig, fitting
from brainjanus.run import LEAST_HELD_OUT, Settled, Tokenized, new_model, settle, tokenized
from brainjanus.train.omni import OmniTrainingConfig, fit_omni
from brainjanus.train.parallel import ANY, Hardware
from brainjanus.train.watch import Diverged

AROUND = (0.25, 0.5, 1.0, 2.0)  # of the rate in the settings, where no rates are given
MEASURED = 9  # times that losses on held-out stimuli are measured; at the third of them, rates may be stopped
MOST_HELD_OUT = 0.25  # of the training stimuli, where there have to be LEAST_HELD_OUT
Outcome = Literal["done", "stopped", "diverged"]


class Behind(Exception):
    """This rate is not worth its other steps."""


class Cell(NamedTuple):
    """One training. curve: (step, loss on held-out stimuli). losses: the last ones, by name. why: of one that ended
    before its last step."""

    rate: float
    seed: int
    outcome: Outcome
    curve: list[tuple[int, float]]
    losses: Mapping[str, float]
    why: str

    @property
    def loss(self) -> float:
        return self.curve[-1][1] if self.curve else math.inf


class Rate(NamedTuple):
    """What became of a learning rate: its cells, one a seed, until the first that was not done."""

    rate: float
    cells: list[Cell]

    @property
    def outcome(self) -> Outcome:
        return self.cells[-1].outcome

    @property
    def loss(self) -> float:
        """The mean over seeds on held-out stimuli at the end; infinite where there is none to compare."""
        return float(np.mean([cell.loss for cell in self.cells])) if self.outcome == "done" else math.inf


class Tuned(NamedTuple):
    """rates: by rate. best: the one with the lowest loss. advice: what else should be tried; empty: nothing."""

    rates: list[Rate]
    best: Rate
    advice: str


def tune(
    dataset: Dataset | Path | str,
    out: Path | str,
    config: RunConfig | None = None,
    rates: Sequence[float] = (),
    *,
    steps: int = 300,
    seeds: Sequence[int] = (),
    tokenizer: Path | str | None = None,
    hardware: Hardware = ANY,
) -> Tuned:
    """Train the model for a few steps at every rate, or go on with that.

    rates: default: from a quarter to twice the rate in the settings. seeds: of weights and batches; default: the one in
    the settings. tokenizer: a brain tokenizer that was trained on this dataset, to be used as it is.
    Raises UserError if `out` holds something else, or a search on other data or with other settings, or if all rates
    diverge.
    """
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    out, config = Path(out), config or fitting(dataset)
    rates = list(rates) or [part * config.training.optim.learning_rate for part in AROUND]
    seeds = list(seeds) or [config.seed]
    check(rates, steps, seeds)
    begun = settle(dataset, config, tokenizer)
    share = held_out_share(dataset, config.training)
    made_from = None if begun.saved is None else begun.saved.fingerprint
    facts: dict[str, Any] = {"dataset": dataset.name, "fingerprint": dataset.fingerprint}
    facts |= {"steps": steps, "tokenizer": made_from, "config": to_dict(config)}
    check_folder(out / "tune.json", facts, "search", "a search for a rate")
    cached(out / "tune.json", lambda: facts)
    training = short(replace(begun.config.training, validation=share), steps)
    begun = begun._replace(config=replace(begun.config, training=training))
    with only_one(out / "tune.json"):
        return search(dataset, out, config, begun, rates, seeds, hardware)


def search(
    dataset: Dataset,
    out: Path,
    config: RunConfig,
    begun: Settled,
    rates: Sequence[float],
    seeds: Sequence[int],
    hardware: Hardware,
) -> Tuned:
    """`tune`, in a folder of its own. begun: the settings of each training; config: those that it was asked with."""
    shared = cache(lambda: tokenized(dataset, begun, out / "shared", hardware))  # where anything is left to train
    found: list[Rate] = []
    every = sorted({*rates, *(cell.rate for cell in cells_in(out))})  # those of earlier searches are compared, too
    for number, rate in enumerate(middle_first(every)):
        cells: list[Cell] = []
        for seed in seeds:
            folder = out / "cells" / name_of(rate, seed)
            if not (folder / "result.json").exists():
                print(f"tune: rate {number + 1}/{len(every)}, {rate:g}, seed {seed}", file=sys.stderr, flush=True)
            others = [cell for one in found for cell in one.cells if cell.seed == seed]
            make = partial(run_cell, shared, begun.config, rate, seed, folder, others, hardware)
            cells.append(cell_of(cached(folder / "result.json", make), folder))
            shutil.rmtree(folder / "state", ignore_errors=True)  # as large as the model, and not needed any more
            if cells[-1].outcome != "done":
                break
        found.append(Rate(rate, cells))
    tuned = judged(out, sorted(found))
    write(out, dataset, config, tuned, begun.config.training.optim.steps)
    return tuned


def check(rates: Sequence[float], steps: int, seeds: Sequence[int]) -> None:
    problems = []
    if len(set(rates)) < 2 or len(set(rates)) != len(rates):
        problems.append(f"rates must be two or more different ones, got {', '.join(f'{rate:g}' for rate in rates)}")
    if wrong := [rate for rate in rates if not 0 < rate < math.inf]:
        problems.append(f"rates must be positive, got {wrong[0]:g}")
    if steps < 1:
        problems.append(f"steps must be at least 1, got {steps}")
    if len(set(seeds)) != len(seeds):
        problems.append(f"seeds must be different ones, got {', '.join(map(str, seeds))}")
    if problems:
        raise UserError("tune: " + "; ".join(problems) + ". Correct these options.")
    check_alone("tune")


def held_out_share(dataset: Dataset, training: OmniTrainingConfig) -> float:
    """How much of the training split is held out, if the dataset has no split "val": what the settings say, or as much
    as can be judged by. Raises UserError if that would be too much of it."""
    if all(dataset.trials(subject).stimuli("val") for subject in dataset.subjects):
        return training.validation
    stimuli = len(dataset.split_ids("train"))
    if round(training.validation * stimuli) >= LEAST_HELD_OUT:
        return training.validation
    if MOST_HELD_OUT * stimuli < LEAST_HELD_OUT:
        raise UserError(
            f"tune: expected held-out stimuli to judge rates by, at least {LEAST_HELD_OUT}, got a dataset with "
            f'{stimuli} training stimuli, which are too few to spare these. Give it a split "val", or say how much of '
            f"training may be spared, as --training.validation {LEAST_HELD_OUT / max(stimuli, 1) + 0.005:.2f}."
        )
    return LEAST_HELD_OUT / stimuli


def short(training: OmniTrainingConfig, steps: int) -> OmniTrainingConfig:
    """The same training in so many steps, whose losses are measured often enough."""
    every = max(1, steps // MEASURED)
    optim = replace(training.optim, steps=steps, save_every=min(training.optim.save_every, 3 * every))
    return replace(training, optim=optim, validate_every=every, sample_every=3 * every, patience=0)


def middle_first(rates: Sequence[float]) -> list[float]:
    """The order in which they are tried: the likely ones first, so that the others can be compared with them."""
    middle = math.exp(float(np.mean(np.log(rates))))
    return sorted(rates, key=lambda rate: (round(abs(math.log(rate / middle)), 9), -rate))


# ---------------------------------------------------------------------------------------------------- one training


def name_of(rate: float, seed: int) -> str:
    return f"rate{rate!r}-seed{seed}"


def run_cell(
    shared: Callable[[], Tokenized],
    config: RunConfig,
    rate: float,
    seed: int,
    folder: Path,
    others: Sequence[Cell],
    hardware: Hardware,
) -> dict[str, Any]:
    """Train at one rate, or go on with that. others: what other rates came to with the same seed."""
    made, training = shared(), replace(config.training, optim=replace(config.training.optim, learning_rate=rate))

    def compare(_: nn.Module, step: int) -> None:
        if step == training.sample_every:
            told = behind(held_out_losses(folder)[-1]["loss"], step, others)
            if told:
                raise Behind(told)

    outcome: Outcome = "done"
    why = ""
    try:
        fit_omni(
            new_model(made, config, seed), made.tokenizers, made.training, training, folder, seed,
            validation=made.validation, hardware=hardware, show=compare,
        )  # fmt: skip
    except Behind as stop:
        outcome, why = "stopped", str(stop)
    except Diverged as error:
        outcome, why = "diverged", str(error)
    lines = held_out_losses(folder)
    if not all(math.isfinite(line["loss"]) for line in lines):
        outcome, why = "diverged", why or "The loss on held-out stimuli is not finite."
        lines = [line for line in lines if math.isfinite(line["loss"])]
    curve = [(line["step"], line["loss"]) for line in lines]
    named = {n: v for n, v in lines[-1].items() if n.startswith(("nats/", "mse/"))} if lines else {}
    return {"rate": rate, "seed": seed, "outcome": outcome, "curve": curve, "losses": named, "why": why}


def behind(loss: float, step: int, others: Sequence[Cell]) -> str:
    """Why a rate is stopped; "" if it is not: it is further behind the best than what the best still gained from here
    on, so that it would have to gain more than twice as much."""
    done = [cell for cell in others if cell.outcome == "done" and step in dict(cell.curve)]
    if not done:
        return ""
    best = min(done, key=lambda cell: cell.loss)
    then = dict(best.curve)[step]
    gained = then - best.loss
    if gained <= 0 or loss - then <= gained:
        return ""
    return f"loss {loss:.4g} at step {step}, where rate {best.rate:g} had {then:.4g} and came to {best.loss:.4g}"


def held_out_losses(folder: Path) -> list[dict[str, Any]]:
    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line for line in lines if line.get("split") == "val"]


def cells_in(out: Path) -> list[Cell]:
    return [cell_of(read_json(file), file.parent) for file in sorted(out.glob("cells/*/result.json"))]


def cell_of(facts: Mapping[str, Any], folder: Path) -> Cell:
    try:
        cell = Cell(**facts)
        return cell._replace(curve=[(int(step), float(loss)) for step, loss in cell.curve])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'result.json'}: expected what a training at one rate came to, got something else ({error}). "
            "The file was edited or damaged: delete it, and run the same command again."
        ) from error


# ---------------------------------------------------------------------------------------------------- what leaves


def judged(out: Path, rates: list[Rate]) -> Tuned:
    """The best rate. Raises UserError if none trained to its end."""
    best = min(rates, key=lambda one: one.loss)
    if best.loss == math.inf:
        raise UserError(
            f"{out}: expected a rate that the model can be trained with, got none among "
            f"{', '.join(f'{one.rate:g}' for one in rates)}: all diverged. Try lower ones, or see why: "
            f"{best.cells[-1].why}"
        )
    advice = ""
    place = rates.index(best)
    if place in (0, len(rates) - 1):
        which, factors = ("smallest", (0.5, 0.25)) if place == 0 else ("largest", (2, 4))
        more = " ".join(f"{best.rate * factor:g}" for factor in factors)
        advice = (
            f"The best rate, {best.rate:g}, is the {which} that was tried, and a better one may lie beyond: widen the "
            f"range, into the same --out, with --rates {best.rate:g} {more}."
        )
    return Tuned(rates, best, advice)


def write(out: Path, dataset: Dataset, config: RunConfig, tuned: Tuned, steps: int) -> None:
    """The table, the picture and the config; each file whole or not at all."""
    rows = [row_of(one) for one in tuned.rates]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with written_beside(out / "rates.tsv") as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", restval="")
        table.writeheader()
        table.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    png = draw(tuned, f"{dataset.name}: losses on held-out stimuli after {steps:,} steps")
    with written_beside(out / "rates.png") as beside:
        beside.write_bytes(png)
    optim = replace(config.training.optim, learning_rate=tuned.best.rate)
    best = replace(config, training=replace(config.training, optim=optim))
    with written_beside(out / "config.json") as beside:
        beside.write_text(json.dumps(to_dict(best), indent=1))


def row_of(one: Rate) -> dict[str, Any]:
    """One line of the table: means over seeds of the losses where its training ended."""
    losses = [cell.loss for cell in one.cells if cell.curve]
    row: dict[str, Any] = {"rate": one.rate, "outcome": one.outcome, "seeds": len(one.cells)}
    row["step"] = min((cell.curve[-1][0] for cell in one.cells if cell.curve), default=0)
    if losses:
        row |= {"loss": float(np.mean(losses)), "lowest": min(losses), "highest": max(losses)}
    if one.outcome == "done":
        for name in one.cells[0].losses:
            row[name] = float(np.mean([cell.losses[name] for cell in one.cells]))
    return row | {"why": one.cells[-1].why}


INK, PALE = "#222222", "#8a8a8a"
MARKS = {"done": "o", "stopped": "s", "diverged": "x"}


def draw(tuned: Tuned, title: str) -> bytes:
    """The loss on held-out stimuli against the rate, and over the steps (PNG). Colours are rates."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure((10.4, 4.4), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = [one.rate for one in tuned.rates]
    colours = dict(zip(rates, colormaps["viridis"](np.linspace(0, 0.88, len(rates))), strict=True))
    done = [one for one in tuned.rates if one.outcome == "done"]
    left.plot([one.rate for one in done], [one.loss for one in done], color=PALE, lw=1, zorder=1)
    top = max(cell.loss for one in done for cell in one.cells)
    margin = 0.12 * (top - tuned.best.loss) or 0.1
    for one in tuned.rates:
        mark, colour = MARKS[one.outcome], colours[one.rate]
        if one.outcome == "done":
            left.plot([one.rate] * len(one.cells), [cell.loss for cell in one.cells], ".", color=colour, ms=5)
        level = one.loss if one.outcome == "done" else top + margin
        left.plot(one.rate, level, mark, color=colour, ms=8, mfc=colour if one.outcome == "done" else "none")
        if one.outcome != "done":
            left.annotate(one.outcome, (one.rate, level), (0, 8), textcoords="offset points", ha="center", fontsize=8)
        label = f"{one.rate:g}" + ("" if one.outcome == "done" else f", {one.outcome}")
        for number, cell in enumerate(one.cells):
            if cell.curve:
                x, y = zip(*cell.curve, strict=True)
                right.plot(x, y, color=colour, lw=1.3, label=label if number == 0 else None)
                right.plot(x[-1], y[-1], mark, color=colour, ms=5, mfc=colour if one.outcome == "done" else "none")
    left.annotate(
        "best", (tuned.best.rate, tuned.best.loss), (0, -14), textcoords="offset points", ha="center", fontsize=8
    )
    left.set_xscale("log")
    left.set_xticks(rates, [f"{rate:g}" for rate in rates])
    left.minorticks_off()
    left.margins(y=0.18)
    starts = [cell.curve[0][1] for one in done for cell in one.cells]
    low = min(cell.loss for one in done for cell in one.cells)
    highest = max(starts) if starts else top
    right.set_ylim(low - 0.05 * (highest - low) - 1e-9, highest + 0.1 * (highest - low) + 1e-9)
    left.set_xlabel("learning rate", fontsize=9, color=INK)
    right.set_xlabel("step", fontsize=9, color=INK)
    for axes, heading in ((left, "at the last step"), (right, "on the way")):
        axes.set_title(heading, fontsize=9, color=INK, loc="left")
        axes.tick_params(labelsize=8, colors=INK, length=2.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PALE)
    right.legend(fontsize=8, frameon=False, labelcolor=INK, title="learning rate", title_fontsize=8)
    figure.suptitle(title, fontsize=11, color=INK, weight="bold", x=0.01, ha="left")
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()
