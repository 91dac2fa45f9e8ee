"""The commands that put questions to a trained model: in-silico experiments, and new subjects."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from brainjanus import arguments
from brainjanus.arguments import DatasetFolder, RunFolder, gathered

if TYPE_CHECKING:
    from brainjanus.run import Run


def opened(run: Path, device: str, out: Path, precision: str = "auto") -> "Run":
    """A run to be asked. Raises UserError for results that exist, and a device that is not there."""
    from brainjanus.insilico.experiment import check_new
    from brainjanus.outputs import check_device
    from brainjanus.run import Run

    check_new(out)
    check_device(device)
    return Run.open(run, device=device, precision=precision)


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
        device: cpu or cuda.
    """
    from brainjanus.adapting import adapt as add
    from brainjanus.core.processes import check_alone
    from brainjanus.outputs import check_device

    def run_it(
        run: RunFolder,
        dataset: DatasetFolder,
        out: Path,
        subject: str | None = None,
        stimuli: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> Path:
        check_alone("adapt")
        check_device(device)
        add(run, dataset, out, subject, stimuli=stimuli, seed=seed, device=device)
        return out

    return arguments.parse(adapt, run_it, argv)


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
        from brainjanus.insilico.localize import localize as ask
        from brainjanus.insilico.localize import summary

        found = ask(
            opened(run, device, out), shown, against, out=out, subjects=subjects, settings=settings, split=split,
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
        from brainjanus.insilico.retinotopy import retinotopy as ask
        from brainjanus.insilico.retinotopy import summary

        found = ask(
            opened(run, device, out), out=out, field_deg=field_deg, stimuli=stimuli, passes=passes,
            subjects=subjects, truth=truth, dataset=dataset, seed=seed,
        )  # fmt: skip
        print("\n".join(summary(found)))
        return out

    return arguments.parse(retinotopy, run, gathered(argv, ("--subjects",)))


def prefer(argv: list[str]) -> Path:
    """Rank stimuli, sentences and generated pictures by how much a region answers to them.

    Examples:
        brainjanus prefer runs/demo/run FFA --out ffa
        brainjanus prefer runs/demo/run FFA+OFA --less-others --prompts "a face" "a house" "a dog" --out faces

    Args:
        run: Folder that `brainjanus train` wrote.
        region: A ROI, several joined by +, sites:0-9,12, or of sensors a name or a window such as 100-200ms.
        out: Folder for figure.png, results.json, generated pictures and maps.
        subjects: Whose brains; the answer is the mean over them. Default: all.
        less_others: Rank by what the region answers more than the mean of all other ROIs.
        split: Of the stimuli that are ranked: test, val or train.
        prompts: Sentences to be ranked. Default: the captions of the split.
        prompts_file: A text file with one sentence a line instead.
        top: How many stimuli count as preferred.
        samples: Pictures that are generated from a synthetic brain; 0 is none.
        level: Standard deviations that the region is raised by in it.
        seed: Of what is drawn at random.
        dataset: Folder of the dataset. Default: where it was when the run was trained.
        device: cpu or cuda.
    """

    def run(
        run: RunFolder,
        region: Positional[Annotated[str, arg(metavar="REGION")]],
        out: Path,
        subjects: tuple[str, ...] = (),
        less_others: bool = False,
        split: Literal["test", "val", "train"] = "test",
        prompts: tuple[str, ...] = (),
        prompts_file: Path | None = None,
        top: int = 8,
        samples: int = 48,
        level: float = 3.0,
        seed: int = 0,
        dataset: Path | None = None,
        device: str = "cpu",
    ) -> Path:
        from brainjanus.insilico.experiment import lines_of
        from brainjanus.insilico.prefer import prefer as ask

        sentences = (*prompts, *(lines_of(prompts_file) if prompts_file else ()))
        found = ask(
            opened(run, device, out), region, out=out, dataset=dataset, subjects=subjects, less_others=less_others,
            split=split, prompts=sentences, top=top, samples=samples, level=level, seed=seed,
        )  # fmt: skip
        r = found.results["prediction"]
        of = "stimuli that the model was trained on" if r["trained_on"] else "stimuli"
        print(f"{found.region}: predicted and measured answers to {r['n']} {of}: r {r['r']:.2f} (p {r['p']:.3g})")
        for one in found.stimuli[:5]:
            print(f"  {one.predicted:+.2f} / {one.measured:+.2f}  {one.name}  {one.caption}")
        return out

    return arguments.parse(prefer, run, gathered(argv, ("--subjects", "--prompts")))


def lesion(argv: list[str]) -> Path:
    """Measure what each region contributes to each attribute that can be decoded, by taking it away.

    Examples:
        brainjanus lesion runs/demo/run --out lesions
        brainjanus lesion runs/demo/run FFA OFA FFA+OFA --only --attributes face animal=dog,bird,fish --out faces

    Args:
        run: Folder that `brainjanus train` wrote.
        regions: ROIs, several joined by +, sites:0-9,12, or of sensors names or windows such as 100-200ms. Default:
            all ROIs, one by one; without ROIs, windows of time or stretches of cortex.
        out: Folder for figure.png, results.json and maps.
        kind: A region that is gone answers as it does on average ("mean"), or was not measured ("hidden").
        only: Keep nothing but the region instead.
        attributes: Words, or NAME=WORD,WORD. Default: those of a simulated study, else words that captions share.
        pictures: Measure the decoded picture, too.
        captions: Of each test stimulus, at most.
        controls: Lesions of the same size elsewhere, for each region and subject.
        subjects: Whose brains. Default: all.
        seed: Of the places of the controls, and of the statistics.
        dataset: Folder of the dataset. Default: where it was when the run was trained.
        device: cpu or cuda.
    """

    def run(
        run: RunFolder,
        regions: Positional[Annotated[tuple[str, ...], arg(metavar="[REGION ...]")]] = (),
        *,
        out: Path,
        kind: Literal["mean", "hidden"] = "mean",
        only: bool = False,
        attributes: tuple[str, ...] = (),
        pictures: bool = False,
        captions: int = 2,
        controls: int = 4,
        subjects: tuple[str, ...] = (),
        seed: int = 0,
        dataset: Path | None = None,
        device: str = "cpu",
    ) -> Path:
        from brainjanus.insilico.lesion import lesion as ask
        from brainjanus.insilico.lesion import summary

        found = ask(
            opened(run, device, out), regions, out=out, dataset=dataset, subjects=subjects, kind=kind, only=only,
            attributes=attributes, pictures=pictures, captions=captions, controls=controls, seed=seed,
        )  # fmt: skip
        print("\n".join(summary(found)))
        return out

    return arguments.parse(lesion, run, gathered(argv, ("--subjects", "--attributes")))


def neighbours(argv: list[str]) -> Path:
    """Look into the shared space: what lies near what, in which layer, against shuffled stimuli and names.

    Examples:
        brainjanus neighbours runs/demo/run --out space
        brainjanus neighbours runs/demo/run --words face house --patterns shared-00116 --out faces

    Args:
        run: Folder that `brainjanus train` wrote.
        out: Folder for figure.png, results.json and maps of codes.
        words: To be looked at. Default: content words that captions of test stimuli share.
        patterns: Test stimuli; the words nearest to the responses to them are listed.
        top: Codes of each subject that are mapped.
        subjects: Whose brains. Default: all.
        seed: Of all shuffles.
        dataset: Folder of the dataset. Default: where it was when the run was trained.
        device: cpu or cuda.
    """

    def run(
        run: RunFolder,
        out: Path,
        words: tuple[str, ...] = (),
        patterns: tuple[str, ...] = (),
        top: int = 4,
        subjects: tuple[str, ...] = (),
        seed: int = 0,
        dataset: Path | None = None,
        device: str = "cpu",
    ) -> Path:
        from brainjanus.insilico.neighbours import neighbours as ask

        found = ask(
            opened(run, device, out, "float32"), out=out, dataset=dataset, subjects=subjects, words=words,
            patterns=patterns, top=top, seed=seed,
        )  # fmt: skip
        for subject, codes in found.codes.items():
            for one in codes[:3]:
                near = ", ".join(f"{word} ({times:.1f} times)" for word, times in one["times"].items())
                print(f"{subject}, code {one['code']} at place {one['place']}: {near}")
        return out

    return arguments.parse(neighbours, run, gathered(argv, ("--subjects", "--words", "--patterns")))


COMMANDS: dict[str, Callable[[list[str]], Path | str]] = {
    "adapt": adapt,
    "localize": localize,
    "retinotopy": retinotopy,
    "prefer": prefer,
    "lesion": lesion,
    "neighbours": neighbours,
}
