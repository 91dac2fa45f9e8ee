"""What the terminal shows of results: tables of records, and what could not be scored.

Enters: records, a comparison, needs of memory, learning rates, or what `doctor` found. Leaves: text on standard output,
no wider than the terminal.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from brainjanus.data.doctor import LIGHTS, Finding
from brainjanus.evaluate.compare import Comparison
from brainjanus.evaluate.metrics import metric_of
from brainjanus.evaluate.record import Record, number
from brainjanus.evaluate.score import main_records
from brainjanus.memory import GB, Row
from brainjanus.outputs import Ranked
from brainjanus.tune import Tuned, row_of

WIDE = 116  # columns of a terminal that all figures need


def print_table(records: Sequence[Record]) -> None:
    """The four directions, mean over subjects, by their main metrics."""
    print_records(main_records(records), "held-out stimuli, mean over subjects")


def print_scores(records: Sequence[Record]) -> None:
    """All metrics of one scoring, for all sites."""
    first = records[0]
    print_records([r for r in records if r.roi is None], f"{first.dataset}, {first.subject}, {first.n} stimuli")


def print_records(records: Sequence[Record], title: str) -> None:
    """One row per record: value and interval beside floor, constant, linear baseline and ceiling."""
    console = _console()
    table = _table(title)
    for column in ("direction", "estimate", "metric"):
        table.add_column(column, no_wrap=column != "estimate")
    names = ["floor", "const.", "linear", "value", "95 %", "ceiling", "p"]
    shown = names if console.width >= WIDE else [name for name in names if name not in ("const.", "95 %")]
    for column in shown:
        table.add_column(column, justify="right", no_wrap=True, min_width=5)
    for r in records:
        between = "" if r.interval is None else f"{r.interval[0]:.3f}-{r.interval[1]:.3f}"
        values = (*map(number, (r.floor, r.constant, r.baseline, r.value)), between, number(r.ceiling), number(r.p))
        cells = dict(zip(names, values, strict=True))
        table.add_row(r.direction, r.estimator, r.metric, *(cells[name] for name in shown))
    console.print(table)


def print_remarks(skipped: Mapping[str, str], warnings: Sequence[str]) -> None:
    """What makes the scores doubtful, and what was not scored, with the reason."""
    for warning in warnings:
        print(f"take care: {warning}")
    if skipped:
        print("not scored:")
    for metric, why in skipped.items():
        print(f"  {metric}: {why}")


def print_comparison(comparison: Comparison) -> None:
    """A table for each block: systems, the first one's floor, and what stands beside all; what is quoted is marked."""
    for block in comparison.blocks:
        table = _table(f"{block.direction}, {block.subject}{f', {block.roi}' if block.roi else ''}")
        table.add_column("metric", no_wrap=True)
        first = {metric: row.values[metric] for row in reversed(block.rows) for metric in row.values if not row.quoted}
        for row in block.rows:
            told = " (quoted)" if row.quoted else f" ({row.estimator})"
            table.add_column(row.system + told, justify="right")
        for name in ("floor", "constant", "linear", "ceiling"):
            table.add_column(name, justify="right", style="dim")
        for metric in block.metrics:
            cells = [cell(row.values.get(metric)) for row in block.rows]
            known = first.get(metric)
            beside = () if known is None else (known.floor, known.constant, known.baseline, known.ceiling)
            name = f"{metric} (lower is better)" if metric_of(metric).lower else metric
            table.add_row(name, *cells, *map(number, beside))
        _console().print(table)
    for note in comparison.notes:
        print(note)


def print_memory(rows: Sequence[Row], title: str) -> None:
    """What each request and each way to train holds at its peak, by what it is for, and the cards that hold it."""
    table = _table(title)
    table.add_column("", no_wrap=True)
    for column in ("weights", "gradients", "moments", "cache", "working", "GB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("cards")
    for row in rows:
        peak = row.peak
        parts = (sum(peak.weights.values()), peak.gradients, peak.moments, peak.cache, peak.working, peak.total)
        table.add_row(row.what, *(f"{part / GB:.1f}" for part in parts), ", ".join(peak.cards) or "none")
    _console().print(table)


def print_rates(tuned: Tuned) -> None:
    """Each learning rate with its loss on held-out stimuli, and the range over seeds; the best one is marked."""
    table = _table("losses on held-out stimuli")
    for column in ("rate", "", "steps", "loss", "over seeds"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for one in tuned.rates:
        row = row_of(one)
        told = "best" if one == tuned.best else "" if one.outcome == "done" else one.outcome
        between = f"{row['lowest']:.4f}-{row['highest']:.4f}" if row["seeds"] > 1 and "loss" in row else ""
        loss = f"{row['loss']:.4f}" if "loss" in row else ""
        table.add_row(f"{one.rate:g}", told, str(row["step"]), loss, between)
    _console().print(table)
    if tuned.advice:
        print(tuned.advice)


def print_ranking(ranking: Sequence[Ranked]) -> None:
    """The candidates of each row, likeliest first; their shares add up to 1."""
    table = _table("log p(candidate | conditions), in nats")
    for column, justify in (("row", "left"), ("candidate", "left"), ("log p", "right"), ("share", "right")):
        table.add_column(column, justify=justify)
    for place, one in enumerate(ranking):
        new = place == 0 or ranking[place - 1].row != one.row
        table.add_row(one.row if new else "", one.candidate, f"{one.log_p:.2f}", f"{one.posterior:.3f}")
    _console().print(table)


def print_findings(findings: Sequence[Finding], title: str) -> None:
    """What `doctor` found, the gravest first, and what to do about it."""
    table = _table(title)
    for column in ("", "check", "found"):
        table.add_column(column, no_wrap=column != "found", overflow="fold")
    styles = {"red": "bold red", "yellow": "yellow", "green": "green", "grey": "dim"}
    for one in findings:
        told = f"{one.sentence} {one.remedy}" if one.light in ("red", "yellow") else one.sentence
        table.add_row(f"[{styles[one.light]}]{one.light}[/]", one.check, told.replace("[", r"\["))
    _console().print(table)
    counts = {light: sum(one.light == light for one in findings) for light in LIGHTS}
    print(", ".join(f"{count} {light}" for light, count in counts.items() if count))


def cell(record: Record | None) -> str:
    if record is None:
        return ""
    between = "" if record.interval is None else f" [{record.interval[0]:.3f}, {record.interval[1]:.3f}]"
    return f"{record.value:.3f}{between}"


def _table(title: str) -> Any:
    from rich import box
    from rich.table import Table

    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDE + 40)  # a file or a pipe has no width of its own
