"""The commands that put questions to a trained model: in-silico experiments, and new subjects."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from brainjanus import arguments
from brainjanus.arguments import RunFolder, gathered


def localize(argv: list[str]) -> Path:
    """Map what sites prefer: the contrast of prompts or pictures of one kind with those of another.

    Examples:
        brainjanus localize runs/demo/run "a face" --out faces
        brainjanus localize runs/demo/run "a face" "a head" --against "a house" "a cottage" --out faces
        brainjanus localize runs/demo/run stimuli:face --against stimuli:house --out faces
        brainjanus localize runs/demo/run pictures/faces --against pictures/houses --out faces

    Args:
        run: Folder that `brainjanus train` wrote.
        shown: Sentences; stimuli:WORD (those whose captions say it); pictures, folders of pictures, or FILE[:KEY].
        out: Folder for figure.png, results.json and the maps.
        against: What it is contrasted with, as above. Default: a broad sample of what training captions say, or of the
            pictures of the split.
        subjects: Whose brains. Default: all.
        settings: In how many places, out of training captions, a sentence is read ("a face on the beach"). 0: none.
        split: Of stimuli:WORD, and of the measured responses that the map is compared with.
        truth: Folder of a simulated study. Default: that of the dataset, if it has one.
        seed: Of what is drawn at random.
        dataset: Folder of the dataset. Default: where it was when the run was trained.
        device: cpu or cuda.
    """

    def run(
        run: RunFolder,
        shown: Positional[Annotated[tuple[str, ...], arg(metavar="WHAT")]],
        out: Path,
        against: tuple[str, ...] = (),
        subjects: tuple[str, ...] = (),
        settings: int = 24,
        split: Literal["test", "val", "train"] = "test",
        truth: Path | None = None,
        seed: int = 0,
        dataset: Path | None = None,
        device: str = "cpu",
    ) -> Path:
        from brainjanus.insilico.experiment import check_new
        from brainjanus.insilico.localize import localize as ask
        from brainjanus.insilico.localize import summary
        from brainjanus.run import Run

        check_new(out)
        found = ask(
            Run.open(run, device=device), shown, against, out=out, subjects=subjects, settings=settings, split=split,
            truth=truth, dataset=dataset, seed=seed,
        )  # fmt: skip
        print("\n".join(summary(found)))
        return out

    return arguments.parse(localize, run, gathered(argv, ("--against", "--subjects")))


def retinotopy(argv: list[str]) -> Path:
    """Map receptive fields: polar angle, eccentricity and size of what each site sees, with bars, wedges and rings.

    Examples:
        brainjanus retinotopy runs/demo/run --out retinotopy
        brainjanus retinotopy runs/mine --field-deg 8.4 --stimuli bars --out retinotopy

    Args:
        run: Folder that `brainjanus train` wrote.
        out: Folder for figure.png, results.json and the maps.
        field_deg: Width of the pictures in degrees of the visual field. Default: 24 for the simulated cortex.
        stimuli: bars (and wedges and rings), patches (random apertures), scenes (whole pictures), or all.
        passes: How often each aperture is shown, with other pictures; R2 is that of passes that were not fitted.
        subjects: Whose brains. Default: all.
        truth: Folder of a simulated study. Default: that of the dataset, if it has one.
        seed: Of what is drawn at random.
        dataset: Folder of the dataset. Default: where it was when the run was trained.
        device: cpu or cuda.
    """

    def run(
        run: RunFolder,
        out: Path,
        field_deg: float | None = None,
        stimuli: Literal["bars", "patches", "scenes", "all"] = "all",
        passes: int = 8,
        subjects: tuple[str, ...] = (),
        truth: Path | None = None,
        seed: int = 0,
        dataset: Path | None = None,
        device: str = "cpu",
    ) -> Path:
        from brainjanus.insilico.experiment import check_new
        from brainjanus.insilico.retinotopy import retinotopy as ask
        from brainjanus.insilico.retinotopy import summary
        from brainjanus.run import Run

        check_new(out)
        found = ask(
            Run.open(run, device=device), out=out, field_deg=field_deg, stimuli=stimuli, passes=passes,
            subjects=subjects, truth=truth, dataset=dataset, seed=seed,
        )  # fmt: skip
        print("\n".join(summary(found)))
        return out

    return arguments.parse(retinotopy, run, gathered(argv, ("--subjects",)))


COMMANDS: dict[str, Callable[[list[str]], Path | str]] = {"localize": localize, "retinotopy": retinotopy}
