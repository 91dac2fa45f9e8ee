"""The cards of a run: what the model is, what it was trained on and how, what it reaches, and what it must not do.

    RUN/README.md           the model card; with scores once they are there
        dataset_card.md     the card of the dataset, as it was when the run was trained or scored

Enters: the files of a run, finished or not, of this version or an older one; nothing is loaded but their facts. What
is not there is not told. A card holds no path, no stimulus and no caption.

Source: Mitchell et al. 2019, "Model Cards for Model Reporting", in the form of the Hugging Face Hub. Differs: limits
are derived from the run, and every score stands beside its floor, linear baseline and ceiling.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from brainjanus.core.card import Card, bullets, forgiven, leave_card, one_line, plain, save_card, table
from brainjanus.core.errors import UserError
from brainjanus.core.progress import duration
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import SPLITS, Dataset, listed
from brainjanus.data.datasheet import CARD, GUIDE, ZSCORED, dataset_card, is_simulated, source_of, tags_of
from brainjanus.evaluate.metrics import metric_of
from brainjanus.evaluate.record import SUBJECT_MEAN, Record, load_scores, number
from brainjanus.evaluate.score import MAIN_ESTIMATORS, main_records

DATASET_CARD = "dataset_card.md"
PAPER = "arXiv:2606.30319"
STAGES = {"brain": "brain_training", "image": "image_training", "omni": "training"}  # folder -> its settings
WEIGHTS = {  # what the files of a run hold
    "model": "model",
    "brain tokenizer": "tokenizers/brain",
    "image tokenizer": "tokenizers/image",
    "vision encoder": "tokenizers/vision",
    "linear drafts": "drafts",
    "relays": "relays",
}
JANUS_LICENCE = "https://github.com/deepseek-ai/Janus/blob/main/LICENSE-MODEL"
NOT_FOR = (
    "on anybody who has not agreed to it, or by whose consent or terms the recordings are not meant for it;",
    "to decide anything about a person: not in medicine, court, employment, insurance, at borders or in school;",
    "to find out who a recording belongs to;",
    "as evidence of what somebody thinks, remembers, dreams or intends: it was trained and scored on what was shown "
    "while a brain was recorded, and what it says is fluent whether it is true or not.",
)


class Facts(NamedTuple):
    """What the files of a run say. model: model.json, None while training is not finished. dataset: the one that the
    model was trained on, if it is still there. stages: steps done and seconds taken by each, as far as logs tell."""

    run: Path
    config: Mapping[str, Any]
    model: Mapping[str, Any] | None
    dataset: Dataset | None
    spaces: Mapping[str, BrainSpace]
    stages: Mapping[str, tuple[int, float | None]]
    records: Sequence[Record]

    @property
    def settings(self) -> Mapping[str, Any]:
        return _mapping(self.config.get("config"))

    @property
    def provenance(self) -> Mapping[str, Any]:
        return _mapping((self.model or self.config).get("provenance"))

    @property
    def janus(self) -> str | None:
        """What the model starts from, by its name alone."""
        name = self.settings.get("janus")
        return Path(str(name)).name if name else None

    @property
    def trained_on(self) -> tuple[str, str]:
        """Name and fingerprint of the dataset that the model was trained on, not of one by which it was adapted."""
        told = self.provenance if "fingerprint" in self.provenance else self.config
        return one_line(str(told.get("dataset"))), str(told.get("fingerprint"))

    @property
    def adapted(self) -> Mapping[str, str]:
        """Subjects that were added later, and the fingerprints of their datasets."""
        return _mapping(self.provenance.get("adapted"))

    @property
    def subjects(self) -> list[str]:
        known = _mapping((self.model or {}).get("num_sites"))
        return list(known) or list(self.dataset.subjects if self.dataset else ())

    def knows(self, modality: str) -> bool:
        """Whether the model reads and writes pictures ("image") or sentences ("text")."""
        if self.model is not None:
            return self.model.get(f"{modality}_tokenizer") is not None
        dataset = self.dataset
        return dataset is not None and bool(dataset.image_size if modality == "image" else dataset.caption_sources)


def leave_cards(
    run: Path, dataset: Dataset | None = None, records: Sequence[Record] | None = None, made_from: Path | None = None
) -> None:
    """Write the cards of a run; what goes wrong is told and costs nothing else. See `leave_card`.

    dataset: the run's, or the one that a subject was added with; default: where it was. records: its scores; default:
    those of RUN/scores. made_from: the run that a subject was added to, whose dataset's card comes along.
    """
    leave_card(run / CARD, lambda: model_card(facts_of(run, dataset, records)))
    if dataset is not None:
        leave_card(run / dataset_card_name(run, dataset), lambda: dataset_card(dataset))
    for card in made_from.glob("dataset_card*.md") if made_from else ():
        with forgiven(run / card.name):
            if not (run / card.name).exists():
                shutil.copyfile(card, run / card.name)


def write_card(path: Path | str, scores: Path | str | None = None) -> Path:
    """Write the card of a dataset, or those of a run, anew; returns the path of the first. What the user wrote stays.

    scores: of the run, a folder or its scores.json; default: RUN/scores. Raises UserError if `path` is neither, or what
    is there in the card's place is not ours.
    """
    path = Path(path)
    if (path / "dataset.json").is_file():
        if scores is not None:
            raise UserError(f"--scores: expected a run beside it, got the dataset {path}. Leave it out.")
        save_card(path / CARD, dataset_card(Dataset.open(path)))
        return path / CARD
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path}: expected a run or a dataset, got neither a config.json nor a dataset.json there. Give a folder "
            "that `brainjanus train` or `brainjanus prepare` wrote."
        )
    facts = facts_of(path, records=None if scores is None else load_scores(scores))
    if "fingerprint" not in facts.config:
        raise UserError(
            f"{path}: expected a run, got a config.json that names no dataset. Give a folder that `brainjanus train` "
            "wrote."
        )
    save_card(path / CARD, model_card(facts))
    if (dataset := opened(facts.config.get("path"), facts.config.get("fingerprint"))) is not None:
        save_card(path / dataset_card_name(path, dataset), dataset_card(dataset))
    return path / CARD


def dataset_card_name(run: Path, dataset: Dataset) -> str:
    """Of a subject that was added, the dataset has a card of its own."""
    adapted = _mapping(_mapping(_json(run / "model.json").get("provenance")).get("adapted"))
    subject = next((who for who, made_from in adapted.items() if made_from == dataset.fingerprint), None)
    return f"dataset_card_{subject}.md" if subject else DATASET_CARD


def facts_of(run: Path, dataset: Dataset | None = None, records: Sequence[Record] | None = None) -> Facts:
    """Read what a run says of itself. dataset, records: see `leave_cards`."""
    config, model = _json(run / "config.json"), _json(run / "model.json") or None
    spaces = {}
    for folder in sorted(run.glob("spaces/*")):
        try:
            spaces[folder.name] = BrainSpace.load(folder)
        except UserError:
            continue
    stages = {stage: found for stage in STAGES if (found := progress_of(run / "stages" / stage / "log.jsonl"))}
    facts = Facts(run, config, model, None, spaces, stages, ())
    wanted = facts.trained_on[1]
    places = [dataset.path if dataset else None, config.get("path"), *(config.get("learnt_from") or ())]
    found_dataset = next((one for place in places if (one := opened(place, wanted))), None)
    if records is None:
        try:
            records = load_scores(run / "scores")
        except UserError:
            records = ()
    own = {wanted, *facts.adapted.values()}
    mine = [record for record in records if record.protocol.fingerprint in own]
    if found_dataset is not None and not spaces:
        spaces = {who: found_dataset.space(who) for who in found_dataset.subjects}
    return facts._replace(dataset=found_dataset, records=mine, spaces=spaces)


def opened(path: object, fingerprint: object) -> Dataset | None:
    """The dataset at a path, if it is there and has this fingerprint."""
    try:
        dataset = Dataset.open(Path(str(path))) if path else None
    except UserError:
        return None
    return dataset if dataset is not None and dataset.fingerprint == fingerprint else None


def progress_of(log: Path) -> tuple[int, float | None] | None:
    """Steps done, and the seconds that they took by the log; None without a log."""
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        trained = [line for line in lines if "split" not in line]
        steps = [int(line["step"]) for line in trained]
        if not steps:
            return None
        before = [0, *steps]
        rates = [line.get("steps_per_sec") for line in trained]
        timed = all(isinstance(rate, int | float) and rate > 0 for rate in rates)
        seconds = (
            sum((now - then) / rate for now, then, rate in zip(steps, before, rates, strict=False)) if timed else None
        )
        return steps[-1], seconds
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def model_card(facts: Facts) -> Card:
    """The card of a run."""
    name, fingerprint = facts.trained_on
    main = main_figures(facts.records)
    modality = facts.dataset.modality if facts.dataset else ""
    front = {
        **_licence_facts(facts),
        **({"base_model": facts.settings["janus"]} if _on_hub(facts.settings.get("janus")) else {}),
        "library_name": "brainjanus",
        "pipeline_tag": "any-to-any",
        "tags": ["brainjanus", "neuroscience", "brain-decoding", "brain-encoding", *tags_of(modality)],
        **({"metrics": list(dict.fromkeys(record.metric for record in main))} if main else {}),
        "brainjanus": {"dataset": name, "fingerprint": fingerprint, "finished": facts.model is not None},
        **({"model-index": [_index(facts, main)]} if main else {}),
    }
    sections = (
        ("The model", _model(facts)),
        ("How it is used", _use(facts)),
        ("What it was trained on", _data(facts)),
        ("How it was trained", _training(facts)),
        ("What it reaches", _scores(facts, main)),
        ("Limits", bullets(_limits(facts, main))),
        ("What it must not be used for", bullets(NOT_FOR)),
        ("Privacy", _privacy(facts)),
        ("Licence", _licence(facts)),
        ("How to cite", bullets(_cite(facts))),
    )
    return Card(f"{plain(facts.run.resolve().name)}: a BrainJanus model of {plain(name)}", front, sections)


def main_figures(records: Sequence[Record]) -> list[Record]:
    """The main metrics of each direction, mean over subjects, by the main estimators."""
    return [r for r in main_records(records) if r.subject == SUBJECT_MEAN and r.estimator in MAIN_ESTIMATORS]


# ---------------------------------------------------------------------------------------------------- sections


def _model(facts: Facts) -> str:
    rows: dict[str, object] = {}
    if facts.model is None:
        rows["state"] = "training is not finished"
    start = f"{facts.janus} (Janus-Pro)" if facts.janus else "random weights"
    trained = _mapping(facts.settings.get("training")).get("trained", "full")
    parts = {"full": "all of it", "lora": "low-rank matrices and the brain's parts", "brain": "the brain's parts alone"}
    rows["starts from"] = start
    rows["trained"] = parts.get(str(trained), trained)
    for what, file in WEIGHTS.items():
        if count := numbers_in(facts.run / f"{file}.safetensors"):
            rows[f"parameters, {what}"] = f"{count:,}"
    decoder = _mapping(_mapping((facts.model or facts.settings).get("omni")).get("decoder"))
    if decoder:
        rows["decoder"] = f"{decoder.get('num_hidden_layers')} layers of width {decoder.get('hidden_size')}"
    rows |= _tokenizers(facts)
    tasks = _mapping(_mapping(facts.settings.get("training")).get("tasks"))
    if tasks:
        rows["tasks (weight)"] = ", ".join(f"{task} ({weight:g})" for task, weight in tasks.items())
    lead = (
        "One autoregressive transformer over tokens of brain responses, pictures and text: any of them is predicted "
        f"from any others. It is a model of the kind that {PAPER} describes, made by the software BrainJanus."
    )
    return f"{lead}\n\n{table(('', ''), list(rows.items()))}"


def _tokenizers(facts: Facts) -> dict[str, object]:
    """What the tokens of each modality are."""
    model, rows = facts.model or {}, dict[str, object]()
    sites, codes = _mapping(model.get("num_sites")), _mapping(_mapping(model.get("interface")).get("brain_codes"))
    if sites:
        each = [f"{who}: {num:,} sites, {codes.get(who, '?')} tokens" for who, num in sites.items()]
        rows["subjects"] = "; ".join(each)
    brain = _mapping(_mapping(model or facts.settings).get("brain_tokenizer"))
    quantizer = _mapping(brain.get("quantizer"))
    if brain:
        rows["brain tokens"] = (
            f"{brain.get('encoder')} encoder, patches of {brain.get('patch_size')} sites, {quantizer.get('kind')} of "
            f"{quantizer.get('num_codes')} codes"
        )
    if image := _mapping(model.get("image_tokenizer")):
        num_codes, omni = _mapping(model.get("interface")).get("image_codes"), _mapping(model.get("omni"))
        own = "Janus-Pro's" if image.get("kind") == "janus" else "its own"
        rows["picture tokens"] = (
            f"{own}, {num_codes} of a picture of {image.get('image_size')} pixels; pictures are read as "
            f"{omni.get('image_input')}"
        )
    if text := _mapping(model.get("text_tokenizer")):
        own = "Janus-Pro's" if text.get("kind") == "janus" else "byte pairs of the training captions"
        size = _mapping(_mapping(model.get("interface")).get("vocabulary")).get("text")
        rows["text tokens"] = f"{own}, {size} pieces, at most {text.get('max_length')} of a caption"
    return rows


def _use(facts: Facts) -> str:
    if facts.model is None:
        return "Training is not finished: the same `brainjanus train` command goes on where it was stopped."
    subject = json.dumps(f"brain:{facts.subjects[0]}") if facts.subjects else '"image"'
    lines = ["import brainjanus as bj", "", 'run = bj.Run.open("FOLDER")']
    if facts.knows("text"):
        longest = _mapping(facts.model.get("text_tokenizer")).get("max_length")
        lines.append(
            f'expected = run.generate({{"text": [sentence]}}, {subject})  # at most {longest} pieces -> [1, sites]'
        )
    elif facts.knows("image"):
        lines.append(f'expected = run.generate({{"image": pictures}}, {subject})  # uint8 [n, h, w, 3] -> [n, sites]')
    python = "\n".join(["```python", *lines, "```"])
    return (
        f"{python}\n\nFrom the command line: `brainjanus generate FOLDER --help`; in a browser: `brainjanus explore "
        "FOLDER`. Weights are safetensors and settings JSON: nothing is unpickled."
    )


def _data(facts: Facts) -> str:
    name, fingerprint = facts.trained_on
    rows: dict[str, object] = {"dataset": name, "fingerprint": fingerprint}
    dataset = facts.dataset
    if dataset is not None:
        rows["recording"] = dataset.modality
        rows["subjects"] = ", ".join(dataset.subjects)
        for split in SPLITS:
            if stimuli := len(dataset.split_ids(split)):
                trials = sum(len(dataset.trials(who).rows(split)) for who in dataset.subjects)
                rows[f"{split}"] = f"{stimuli:,} stimuli, {trials:,} trials"
        rows["z-scored"] = ZSCORED.get(str(dataset.manifest.get("zscore")), "not recorded")
    lines = [table(("", ""), list(rows.items()))]
    if dataset is None:
        lines.append("The dataset is not where it was when the run was trained: no more is known of it here.")
    card = facts.run / DATASET_CARD
    if dataset is not None or card.exists():
        lines.append(f"[{DATASET_CARD}]({DATASET_CARD}) says more.")
    if facts.adapted:
        told = _mapping(facts.config.get("adapted"))
        lines.append(f"Added later, the model staying as it was: {listed(map(plain, facts.adapted))}.")
        if {"subject", "stimuli"} <= told.keys():
            lines[-1] += f" {plain(told['subject'])} was added with {told['stimuli']} stimuli (`adapt.json`)."
    return "\n\n".join(lines)


def _training(facts: Facts) -> str:
    rows = []
    for stage, key in STAGES.items():
        optim = _mapping(facts.settings.get(key))
        optim = _mapping(optim.get("optim")) if stage == "omni" else optim
        if stage not in facts.stages or not optim:
            continue
        done, seconds = facts.stages[stage]
        asked = optim.get("steps", "?")
        steps = f"{done:,}" if done == asked else f"{done:,} of {asked:,}" if isinstance(asked, int) else f"{done:,}"
        took = "not recorded" if seconds is None else duration(seconds)
        rows.append((stage, steps, optim.get("batch_size"), optim.get("optimizer"), optim.get("learning_rate"), took))
    lines = [table(("stage", "steps", "batch", "optimizer", "rate", "time in steps"), rows)]
    if "tokenizer" in facts.config:
        lines.append("The brain tokenizer was trained before, and taken as it is.")
    told = facts.provenance
    made = [f"{name} {told[name.lower()]}" for name in ("BrainJanus", "torch", "Python") if name.lower() in told]
    where = f"Finished on {told['device']}, processes: {told.get('processes', 1)}." if "device" in told else ""
    with_what = f"Made with {', '.join(made)}." if made else ""
    lines.append(" ".join(filter(None, [f"Seed {facts.settings.get('seed', '?')}.", with_what, where])))
    lines.append("`config.json` holds every setting; the same command with `--config` trains it again.")
    return "\n\n".join(line for line in lines if line)


def _scores(facts: Facts, main: Sequence[Record]) -> str:
    if not main:
        return (
            "It has not been scored. `brainjanus evaluate FOLDER` does so on held-out stimuli, and fills in this table."
        )
    rows = []
    for record in main:
        metric = metric_of(record.metric)
        between = f" ({record.interval[0]:.3f} to {record.interval[1]:.3f})" if record.interval else ""
        lower = " (lower is better)" if metric.lower else ""
        beside = [number(one) or "–" for one in (record.floor, record.constant, record.baseline, record.ceiling)]
        rows.append((record.direction, f"{metric.title}{lower}", f"{record.value:.3f}{between}", *beside, record.n))
    whose = listed(sorted({plain(r.subject) for r in facts.records if r.subject != SUBJECT_MEAN}) or ["subjects"])
    columns = ("direction", "metric", "value (95 %)", "floor", "constant", "linear", "ceiling", "n")
    return (
        f"{table(columns, rows)}\n\nOn held-out stimuli, mean over {whose}; n counts the predictions of all. Floor: "
        "the same predictions, handed out to the wrong stimuli. Constant: one prediction for all. Linear: "
        "cross-validated ridge regression on the same data. Ceiling: what noise, or people's agreement, allows. "
        f"Seed {main[0].seed}. `scores.json` and `report.html` have all other figures."
    )


def _limits(facts: Facts, main: Sequence[Record]) -> list[str]:
    """What follows from the facts of the run."""
    lines = []
    if facts.model is None:
        lines.append("Training is not finished.")
    if facts.dataset is not None and is_simulated(facts.dataset):
        lines.append("Its brains are simulated: it says nothing about a real one.")
    elif facts.dataset is not None and "fmri" not in facts.dataset.modality.lower():
        lines.append("Its recordings are not fMRI: its scores do not compare with fMRI studies.")
    who = facts.subjects
    many = "subject" if len(who) == 1 else "subjects"
    lines.append(
        f"It knows {len(who)} {many} ({listed(map(plain, who))}), and nobody else's brain, until `brainjanus adapt` "
        "adds it."
    )
    if facts.dataset is not None:
        seen = len(facts.dataset.split_ids("train"))
        lines.append(f"Its training split has {seen:,} stimuli: what is unlike them is out of its reach.")
    for modality, name in (("image", "pictures"), ("text", "sentences")):
        if not facts.knows(modality):
            lines.append(f"It neither reads nor writes {name}.")
    text = _mapping(_mapping(facts.model or {}).get("text_tokenizer"))
    if text and text.get("kind") != "janus":
        lines.append("Its words are learnt from its training captions alone.")
    if nowhere := [name for name, space in facts.spaces.items() if space.points_mm is None]:
        lines.append(
            f"Where the sites of {listed(map(plain, nowhere))} lie is not known: no maps on the cortex, and no new "
            "subject by anatomy alone."
        )
    if unknown := [name for name, space in facts.spaces.items() if space.noise_variance is None]:
        lines.append(f"Nothing was shown twice to {listed(map(plain, unknown))}: scores have no noise ceiling there.")
    if not main:
        lines.append("It has not been scored: nothing is known of how good it is.")
        return lines
    behind = [r for r in main if r.baseline is not None and not better(r.value, r.baseline, r.metric)]
    if behind:
        told = ", ".join(f"{r.direction} {metric_of(r.metric).title}" for r in behind)
        lines.append(f"It is no better than a linear model on the same data in: {told}.")
    by_chance = [r for r in main if r.p is not None and r.p > 0.05]
    if by_chance:
        told = ", ".join(f"{r.direction} {metric_of(r.metric).title}" for r in by_chance)
        lines.append(f"It is not told from chance (p > .05) in: {told}.")
    return lines


def _privacy(facts: Facts) -> str:
    if facts.dataset is not None and is_simulated(facts.dataset):
        return "It was trained on simulated responses: nobody's data are in it."
    return (
        "Its weights were fitted to recordings of brains. If they are people's, the model can be personal data like "
        "them: it predicts how these very brains respond. Share it only if their consent and the terms of the source "
        "allow it, and with pseudonyms: the subjects' names stand in its files. BrainJanus's guide says more "
        f"({GUIDE})."
    )


def _licence_facts(facts: Facts) -> dict[str, str]:
    return {"license": "other", "license_name": "deepseek", "license_link": JANUS_LICENCE} if facts.janus else {}


def _licence(facts: Facts) -> str:
    lines = []
    if facts.janus:
        lines.append(
            f"The model is derived from Janus-Pro's weights, whose licence ({JANUS_LICENCE}) holds for it: a copy of "
            "that licence, and its use restrictions as an enforceable term, go with every copy of this model. Military "
            "use is among what it forbids."
        )
    source = source_of(facts.dataset) if facts.dataset is not None else None
    if source is not None:
        lines.append(source.terms)
    elif facts.dataset is None or not is_simulated(facts.dataset):
        lines.append("The terms of the recordings hold for what is made of them: see the dataset's card.")
    if not facts.janus:
        lines.append("No licence of the weights is set: put `license: ...` at the end of the front matter.")
    lines.append("BrainJanus, the software, is Apache-2.0; that says nothing about the weights.")
    return " ".join(lines)


def _cite(facts: Facts) -> list[str]:
    lines = [
        "The software: The BrainJanus developers, BrainJanus (its `CITATION.cff` has the version).",
        "The model that it implements: Wu, H., et al. (2026). BrainJanus: A Unified Model for Understanding and "
        f"Generation across Brain, Vision, and Language. {PAPER}",
    ]
    if facts.janus:
        lines.append(
            "Chen, X., et al. (2025). Janus-Pro: Unified Multimodal Understanding and Generation with Data and Model "
            "Scaling. arXiv:2501.17811"
        )
    source = source_of(facts.dataset) if facts.dataset is not None else None
    return [*lines, *(source.cite if source else ())]


def _index(facts: Facts, main: Sequence[Record]) -> dict[str, Any]:
    """The scores as the Hub reads them."""
    results = []
    for direction in dict.fromkeys(record.direction for record in main):
        here = [record for record in main if record.direction == direction]
        metrics = [{"type": r.metric, "name": metric_of(r.metric).title, "value": round(r.value, 4)} for r in here]
        task = {"type": direction.replace("->", "-to-"), "name": direction}
        dataset = {"type": here[0].protocol.fingerprint[:12], "name": here[0].dataset, "split": here[0].protocol.split}
        results.append({"task": task, "dataset": dataset, "metrics": metrics})
    return {"name": facts.run.resolve().name, "results": results}


# ---------------------------------------------------------------------------------------------------- small things


def better(value: float, other: float, metric: str) -> bool:
    return value < other if metric_of(metric).lower else value > other


def numbers_in(path: Path) -> int | None:
    """How many numbers a safetensors file holds; None if it is not there or damaged. Its header alone is read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _on_hub(name: object) -> bool:
    """Whether weights were called by their name on the hub, and not by a folder."""
    return isinstance(name, str) and bool(re.fullmatch(r"deepseek[\w-]*/Janus[\w.-]*", name))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _json(path: Path) -> dict[str, Any]:
    """What a file says; nothing if it is not there, or says nothing that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
