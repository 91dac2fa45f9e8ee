"""The commands that put questions to a trained model: in-silico experiments, and new subjects."""

from collections.abc import Callable
from pathlib import Path

from brainjanus import arguments
from brainjanus.arguments import DatasetFolder, RunFolder


def adapt(argv: list[str]) -> Path:
    """Add a new subject to a trained run with little data, or by where its sites lie alone; the run stays as it is.

    Examples:
        brainjanus adapt runs/study data/new --subject subj09 --out runs/with-subj09
        brainjanus adapt runs/study data/new --subject subj09 --stimuli 100 --out runs/with-100
        brainjanus adapt runs/study data/new --subject subj09 --stimuli 0 --out runs/zero-shot
        brainjanus evaluate runs/with-subj09

    Args:
        run: Folder of a trained run.
        dataset: Dataset that holds the new subject, prepared with pictures, captions and features as the run's.
        out: Folder for the run with all old subjects and the new one.
        subject: Whom to add. Default: the only one that the run does not know.
        stimuli: So many of its training stimuli are used; 0: no response at all, coordinates alone. Default: all.
        seed: Of which stimuli these are.
    """
    from brainjanus.adapting import adapt as add

    def run_it(
        run: RunFolder,
        dataset: DatasetFolder,
        out: Path,
        subject: str | None = None,
        stimuli: int | None = None,
        seed: int = 0,
    ) -> Path:
        add(run, dataset, out, subject, stimuli=stimuli, seed=seed)
        return out

    return arguments.parse(adapt, run_it, argv)


COMMANDS: dict[str, Callable[[list[str]], Path | str]] = {"adapt": adapt}
