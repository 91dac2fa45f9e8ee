"""New subjects with little data, and what was never shown: a model trained without them, beside ridge from scratch.

Without a flag, a subject of the simulated cortex that the model was trained without, or, with --v4, a session of
macaque V4 (spike counts, not fMRI), is added by `brainjanus adapt` with 0 (zero-shot), 10, 30, 100, 300 and 1000
stimuli. Ridge has the same stimuli and nothing else. With --unseen, models that never saw some combinations of object
and colour, or some kind of object, or one direction, beside their twins that did, on the same held-out stimuli.
python benchmarks/adapt.py --out benchmarks/results/adapt.json [--v4] [--unseen] [--seed 1] [--quick]
"""

import argparse
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from any_to_any import r
from records import Claim, arguments, write

from brainjanus import Dataset, RunConfig, SimulationConfig, adapt, recipes, simulate
from brainjanus.data.dataset import Stimuli, Subject, Trials
from brainjanus.data.scenes import CATEGORIES, COLOURS, Scene, compose
from brainjanus.data.simulate import _generator
from brainjanus.data.write import write_dataset
from brainjanus.evaluate.baselines import linear_baseline
from brainjanus.evaluate.brain import identification_ranks, pattern_scores
from brainjanus.evaluate.text import content_words
from brainjanus.generate import GenerationConfig
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.run import directions_of, predict, train

BUDGETS = (0, 10, 30, 100, 300, 1000)
BAR_AT, BAR = 100, 1.2  # stimuli, of ridge
METRICS = {"image->brain": "voxel r", "text->brain": "voxel r", "brain->image": "two-way", "brain->text": "word F1"}
NEW_SESSION = "PE210325"
NEVER_SEEN = "boat"
Keep = Callable[[str], bool]


def part_of(
    dataset: Dataset, path: Path, subjects: Sequence[str], keep: Keep = lambda _: True, most: int | None = None,
    seed: int = 0, zscore: str = "none",
) -> Dataset:  # fmt: skip
    """Some subjects of a dataset, with some of their training stimuli, at most so many of each; all others stay."""
    if path.exists():
        return Dataset.open(path)
    recordings, used = [], set()
    for subject in subjects:
        trials = dataset.trials(subject)
        able = [stimulus for stimulus in trials.stimuli("train") if keep(stimulus)]
        kept = {able[row] for row in np.random.default_rng(seed).permutation(len(able))[:most]}
        told = zip(trials.stimulus_id, trials.split, strict=True)
        rows = np.array([row for row, (name, split) in enumerate(told) if split != "train" or name in kept])
        ids, splits = ([column[row] for row in rows] for column in (trials.stimulus_id, trials.split))
        part = Trials(ids, trials.session[rows], trials.run[rows], trials.repeat[rows], splits)
        recordings.append(Subject(dataset.space(subject), dataset.responses(subject, rows), part))
        used |= set(ids)
    names = [stimulus for stimulus in dataset.stimulus_ids if stimulus in used]
    groups = [dataset.pictures(stimulus) for stimulus in names]
    spoken = {stimulus: dataset.captions(stimulus) for stimulus in names if dataset.captions(stimulus)}
    stimuli = Stimuli(
        names, np.concatenate(groups), np.repeat(np.arange(len(names)), [len(group) for group in groups]),
        captions=spoken or None, features={name: dataset.features(name, names) for name in dataset.feature_names},
    )  # fmt: skip
    return write_dataset(
        path, name=dataset.name, modality=dataset.modality, subjects=recordings, stimuli=stimuli, zscore=zscore
    )


def scored(
    dataset: Dataset, subject: str, direction: str, values: object, among: Collection[str] | None = None
) -> float:
    """The figure of METRICS, on the held-out stimuli, or some of them. values: one prediction each."""
    averages = dataset.averages(subject, "test")
    rows = [row for row, name in enumerate(averages.stimulus_ids) if among is None or name in among]
    ids = [averages.stimulus_ids[row] for row in rows]
    if direction.endswith("->brain"):
        return float(r(np.asarray(values)[rows], averages.responses[rows]).mean())
    if direction == "brain->image":
        shown = dataset.images(ids).reshape(len(ids), -1).astype(np.float32)
        table = pattern_scores(shown, np.asarray(values)[rows].reshape(len(ids), -1))
        ranks = np.diag(identification_ranks(table))
        return float(1 - (ranks - 1).mean() / (len(ids) - 1))
    said = [set(content_words(values[row])) for row in rows]  # type: ignore[index]
    best = []
    for name, words in zip(ids, said, strict=True):
        told = [set(content_words(caption)) for caption in dataset.captions(name)]
        best.append(max(2 * len(words & one) / max(1, len(words) + len(one)) for one in told))
    return float(np.mean(best))


def measured(
    checkpoint: Checkpoint, dataset: Dataset, subject: str, among: Collection[str] | None = None
) -> dict[str, float]:
    """The figures of all directions that the model knows and the data have."""
    found = {}
    for direction in directions_of(checkpoint):
        config = GenerationConfig(temperature=0.0) if direction == "brain->text" else GenerationConfig()
        predictions = predict(checkpoint, dataset, direction, subject, config)
        found[direction] = scored(dataset, subject, direction, predictions.values, among)
    return found


def curve(args: argparse.Namespace, dataset: Dataset, config: RunConfig, new: str, name: str) -> list[Claim]:
    """One subject by how many of its stimuli are known. What is made is kept, but for the adapted runs."""
    work = args.work / f"adapt-{name}-{'quick-' if args.quick else ''}{args.seed}"
    known = [subject for subject in dataset.subjects if subject != new]
    base = part_of(dataset, work / "known", known)
    train(base, work / "run", config)
    every = len(dataset.trials(new).stimuli("train"))
    budgets = sorted({min(budget, every) for budget in BUDGETS})
    has_coordinates = dataset.space(new).points_mm is not None
    model: dict[int, dict[str, float]] = {}
    ridge: dict[int, dict[str, float]] = {}
    for budget in budgets if has_coordinates else budgets[1:]:
        few = part_of(
            dataset, work / f"new-{budget or every}", [new], most=budget or None, seed=args.seed, zscore="all"
        )
        shutil.rmtree(work / "adapted", ignore_errors=True)
        run = adapt(work / "run", few, work / "adapted", new, stimuli=0 if budget == 0 else None)
        model[budget] = measured(run.checkpoint, few, new)
        if budget:
            ids = few.averages(new, "test").stimulus_ids
            ridge[budget] = {
                direction: scored(few, new, direction, linear_baseline(few, new, direction, ids))
                for direction in model[budget]
            }
        print(budget, model[budget], ridge.get(budget), flush=True)
    claims = []
    for budget, figures in model.items():
        for direction, value in figures.items():
            title = f"{direction} {METRICS[direction]}, {budget} stimuli"
            bar = BAR if budget == BAR_AT and METRICS[direction] == "voxel r" else None
            if budget:
                claims.append(Claim(title, value, "", "ridge from scratch", ridge[budget][direction], bar))
            if 0 in model:
                zero = model[0][direction]
                claims.append(Claim(f"  {title}" if budget else title, value, "", "zero-shot", zero))
    own = {s: measured(Checkpoint.load(work / "run").prepare(), base, s) for s in known}
    for direction in next(iter(own.values())):
        mean = float(np.mean([figures[direction] for figures in own.values()]))
        claims.append(Claim(f"{direction} {METRICS[direction]}, the known subjects' own", mean, ""))
    draw(model, ridge, args.out.with_suffix(".png"), "V4, one session" if args.v4 else "simulated cortex, one subject")
    return claims


def draw(model: dict[int, dict[str, float]], ridge: dict[int, dict[str, float]], path: Path, title: str) -> None:
    """The figures of each direction against the number of stimuli."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    directions = list(next(iter(model.values())))
    figure, panels = plt.subplots(
        1, len(directions), figsize=(3.1 * len(directions), 3.1), squeeze=False, layout="constrained"
    )
    for panel, direction in zip(panels[0], directions, strict=True):
        some = [budget for budget in model if budget]
        panel.plot(some, [model[budget][direction] for budget in some], "o-", label="adapted")
        panel.plot(some, [ridge[budget][direction] for budget in some], "s--", color="0.5", label="ridge from scratch")
        if 0 in model:
            panel.axhline(model[0][direction], color="C0", linestyle=":", label="zero-shot, by anatomy")
        panel.set(xscale="log", title=direction, xlabel="stimuli", ylabel=METRICS[direction])
        panel.set_xticks(some, [str(budget) for budget in some])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# --- what was never shown -------------------------------------------------------------------------------------------


def scenes_of(config: SimulationConfig, dataset: Dataset) -> dict[str, Scene]:
    """What each stimulus of a simulated study shows: composed anew, in the order in which it was."""
    rng = _generator(config, "scenes")
    return {stimulus: compose(rng) for stimulus in dataset.stimulus_ids}


def held_apart(scene: Scene) -> bool:
    """Whether an object has a colour that is never seen on it: a quarter of all combinations."""
    kinds, colours = list(CATEGORIES), list(COLOURS)
    return any((kinds.index(item.category) + colours.index(item.colour)) % 4 == 0 for item in scene.items)


def unseen(args: argparse.Namespace, dataset: Dataset, size: SimulationConfig, config: RunConfig) -> list[Claim]:
    """Each model beside a twin with as many training stimuli, drawn from all; both on the held-out scenes that only the
    twin had the like of."""
    work = args.work / f"unseen-{'quick-' if args.quick else ''}{args.seed}"
    scenes = scenes_of(size, dataset)
    subject = dataset.subjects[0]
    claims = []
    tests: dict[str, Callable[[Scene], bool]] = {
        "combinations of object and colour": held_apart,
        f"a kind of object ({NEVER_SEEN})": lambda scene: any(item.category == NEVER_SEEN for item in scene.items),
    }
    for number, (title, is_new) in enumerate(tests.items()):
        test = {s for s in dataset.trials(subject).stimuli("test") if is_new(scenes[s])}
        kept = sum(not is_new(scenes[s]) for s in dataset.trials(subject).stimuli("train"))
        found = {}
        for twin in (False, True):
            folder = work / f"{number}-{'twin' if twin else 'without'}"

            def keep(stimulus: str, twin: bool = twin, is_new: Callable[[Scene], bool] = is_new) -> bool:
                return twin or not is_new(scenes[stimulus])

            part = part_of(dataset, folder / "data", [subject], keep, most=kept, seed=args.seed)
            found[twin] = measured(train(part, folder / "run", config).prepare(), part, subject, test)
        claims += [
            Claim(
                f"{direction} {METRICS[direction]}, {title} unseen, n {len(test)}",
                value,
                "",
                "twin",
                found[True][direction],
            )
            for direction, value in found[False].items()
        ]
    return claims + left_out(dataset, work / "direction", config)


def left_out(dataset: Dataset, work: Path, config: RunConfig) -> list[Claim]:
    """A direction that was never trained, alone or with all others that read a sentence, by the transformer alone: the
    linear draft is fitted in this direction."""
    part, direction, subject = part_of(dataset, work / "data", dataset.subjects), "text->brain", dataset.subjects[0]
    tasks = config.training.tasks
    mixtures = {
        "twin": tasks,
        "alone": {task: weight for task, weight in tasks.items() if task != direction},
        "without": {task: weight for task, weight in tasks.items() if "text" not in task.split("->")[0]},
    }
    found: dict[tuple[str, str], float] = {}
    for which, mixture in mixtures.items():
        own = replace(config, training=replace(config.training, tasks=mixture))
        checkpoint = train(part, work / which, own).prepare()
        assert checkpoint.drafts is not None
        for who, trust in (("draft", 0.0), ("transformer", 1.0)):
            checkpoint.drafts.trust(subject).of("text").fill_(trust)
            values = predict(checkpoint, part, direction, subject, GenerationConfig()).values
            found[which, who] = scored(part, subject, direction, values)
    twin, title = found["twin", "transformer"], f"{direction} voxel r, transformer alone"
    return [
        Claim(f"{title}, never trained, image+text->brain is", found["alone", "transformer"], "", "twin", twin),
        Claim(f"{title}, never trained, nor any that reads words", found["without", "transformer"], "", "twin", twin),
        Claim(f"{title}, trained", twin, "", "linear draft", found["twin", "draft"]),
    ]


def main() -> None:
    args = arguments(__doc__, flags={"v4": "macaque V4", "unseen": "combinations, objects and directions"})
    if args.v4:
        from v4 import prepared

        dataset, config, _ = prepared(args)
        write(curve(args, dataset, config, NEW_SESSION, "v4"), args.out)
        return
    size = SimulationConfig(seed=args.seed)
    if args.quick:
        size = SimulationConfig(num_train=300, num_test=100, seed=args.seed)
    study = args.work / f"simulated_cortex-{'quick-' if args.quick else ''}{args.seed}" / "study"
    if args.quick:
        study = args.work / f"adapt-quick-study-{args.seed}"
    dataset = Dataset.open(study / "dataset") if (study / "dataset").exists() else simulate(study, size)
    config = (recipes.quick if args.quick else recipes.laptop)(args.seed)
    if args.unseen:
        write(unseen(args, dataset, size, config), args.out)
    else:
        write(curve(args, dataset, config, dataset.subjects[-1], "simulated"), args.out)


if __name__ == "__main__":
    main()
