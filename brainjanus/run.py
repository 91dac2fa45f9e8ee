"""Run: a dataset and a config enter; trained tokenizers and a model leave, and then predictions, scores, a report.

RUN/config.json                 all settings, the dataset's fingerprint
    stages/{brain,image,omni}/  training state and log.jsonl of each stage
    codes/                      the training split, tokenized
    model.json, model.safetensors, tokenizers/, spaces/     the checkpoint; written when training is complete
    README.md, dataset_card.md      the cards: begun with the training, finished with it, with scores once it is scored
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from brainjanus.cards import leave_cards
from brainjanus.core.config import read_json, to_dict
from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.extensions import loaded_extensions
from brainjanus.core.processes import (
    by_itself,
    first_before_others,
    is_first,
    only_one,
    own_device,
    together,
    told_device,
    wait,
    world,
)
from brainjanus.core.progress import progress
from brainjanus.core.weights import fingerprint
from brainjanus.data.dataset import Dataset
from brainjanus.data.datasheet import CARD
from brainjanus.evaluate.encode_decode import control_records, encode_decode_records
from brainjanus.evaluate.examples import (
    CaptionExample,
    CodebookUsage,
    ImageExample,
    caption_examples,
    image_examples,
    map_examples,
)
from brainjanus.evaluate.extras import Extras
from brainjanus.evaluate.kept import Kept, kept
from brainjanus.evaluate.protocol import software
from brainjanus.evaluate.record import Direction, Predictions, Record, save_scores
from brainjanus.evaluate.report import write_report
from brainjanus.evaluate.score import Scored, ScoreOptions, check_leaks, score, summary
from brainjanus.generate import Generated, GenerationConfig, codes_in, device_of, estimate, generate, score_candidates
from brainjanus.generate import score as log_p
from brainjanus.model.backbone import begin
from brainjanus.model.checkpoint import JANUS, Checkpoint, Tokenizers, interface_of
from brainjanus.model.draft import GUESS, Drafts, channels_of
from brainjanus.model.janus import JanusFolder, janus_model, janus_tokenizers, omni_config, open_janus
from brainjanus.model.llama import LLAMA, open_llama
from brainjanus.model.omni import OmniModel
from brainjanus.recipes import RunConfig, fitting
from brainjanus.samples import Samples
from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.tokenizers.folder import SavedTokenizer, load_tokenizer
from brainjanus.tokenizers.image import ImageTokenizer
from brainjanus.tokenizers.janus import JanusTextTokenizer
from brainjanus.tokenizers.text import TextTokenizer
from brainjanus.tokenizers.vision import ENCODERS, can_encode, on_device
from brainjanus.train.codes import Codes, captions_of_each, encode_split, features_of, pictures_of_each
from brainjanus.train.draft import solve_drafts
from brainjanus.train.omni import expand_tasks, fit_omni, measure_drafts, weigh_drafts
from brainjanus.train.optim import autocast_dtype
from brainjanus.train.parallel import ANY, Hardware
from brainjanus.train.state import WATCHED, generator_of
from brainjanus.train.tokenizer import fit_brain_tokenizer, fit_image_tokenizer
from brainjanus.train.watch import Sink, check_sinks

STAGES = ("brain", "image", "omni")
LEAST_STIMULI = {"train": 3, "test": 2}
LEAST_HELD_OUT, HELD_OUT = 16, -1  # stimuli; the step whose generator says which
GUIDANCE = 2.0  # of the guided picture that stands beside the expected one


class Run(NamedTuple):
    """A trained run, opened: what the functions of this file do, as methods."""

    path: Path
    checkpoint: Checkpoint

    @classmethod
    def train(
        cls,
        dataset: Dataset | Path | str,
        out: Path | str,
        config: RunConfig | None = None,
        *,
        tokenizer: Path | str | None = None,
        hardware: Hardware = ANY,
        sinks: Sequence[Sink] = (),
    ) -> "Run":
        """Train, or go on with an unfinished run in `out`; see `brainjanus.run.train`."""
        checkpoint = train(dataset, out, config, tokenizer=tokenizer, hardware=hardware, sinks=sinks)
        return cls(Path(out), checkpoint)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        precision: str = "auto",
        device: torch.device | str = "cpu",
        acceleration: str = "none",
    ) -> "Run":
        """Read a finished run, to ask it. Raises UserError if it is missing, unfinished or damaged.

        precision, acceleration: see `Checkpoint.prepare`.
        """
        return cls(Path(path), Checkpoint.load(path, device=device).prepare(precision, acceleration))

    def generate(
        self, conditions: Mapping[str, object], target: str, config: GenerationConfig | None = None
    ) -> torch.Tensor | list[str]:
        """One output per row of the conditions; see `brainjanus.generate.generate`."""
        return generate(self.checkpoint, conditions, target, config)

    def estimate(
        self, conditions: Mapping[str, object], target: str, config: GenerationConfig | None = None
    ) -> Generated:
        """The same with the standard error of a mean, or all samples; see `brainjanus.generate.estimate`."""
        return estimate(self.checkpoint, conditions, target, config)

    def score(self, conditions: Mapping[str, object], target: str, rows: object) -> torch.Tensor:
        """log p(row | its conditions), in nats; see `brainjanus.generate.score`."""
        return log_p(self.checkpoint, conditions, target, rows)

    def score_candidates(
        self, conditions: Mapping[str, object], target: str, candidates: object, *, one_pass: bool = False
    ) -> torch.Tensor:
        """log p of every candidate under every row; see `brainjanus.generate.score_candidates`."""
        return score_candidates(self.checkpoint, conditions, target, candidates, one_pass=one_pass)

    def evaluate(self, dataset: Dataset | Path | str, out: Path | str, *, seed: int = 0) -> list[Record]:
        """Score all directions on the test split; writes scores.json and report.html into `out`.

        The run's files are read again, and a second copy of the model predicts on the device of this one.
        """
        return evaluate(self.path, dataset, out, seed=seed, device=device_of(self.checkpoint)).records


def train(
    dataset: Dataset | Path | str,
    out: Path | str,
    config: RunConfig | None = None,
    *,
    tokenizer: Path | str | None = None,
    hardware: Hardware = ANY,
    sinks: Sequence[Sink] = (),
) -> Checkpoint:
    """Train tokenizers and model on the training split; an unfinished run in `out` goes on where it stopped.

    tokenizer: a brain tokenizer that was trained on this dataset, to be used as it is. hardware: what it runs on; where
    the environment tells of several processes, they share the work. sinks: where logs go besides log.jsonl.

    Raises UserError if `out` holds something else, or a run on other data or with other settings.
    """
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    with together(own_device(hardware.device)):
        return train_together(dataset, Path(out), config or fitting(dataset), tokenizer, hardware, sinks)


def train_together(
    dataset: Dataset,
    out: Path,
    config: RunConfig,
    tokenizer: Path | str | None,
    hardware: Hardware,
    sinks: Sequence[Sink],
) -> Checkpoint:
    """`train`, among the processes that there are."""
    check_sinks(sinks)
    begun = settle(dataset, config, tokenizer)
    made_from = None if begun.saved is None else begun.saved.fingerprint
    first_before_others(lambda: claim(out, dataset, begun.config, tokenizer=made_from))
    if (out / "model.json").exists():
        if is_first() and not (out / CARD).exists():  # of a run that was trained by an older version
            leave_cards(out, dataset)
        return Checkpoint.load(out)
    with only_one(out / "config.json"):
        if is_first():
            leave_cards(out, dataset)
        checkpoint = train_model(dataset, out, begun, hardware, sinks)
        if is_first():
            leave_cards(out, dataset)
        return checkpoint


def train_model(dataset: Dataset, out: Path, begun: "Settled", hardware: Hardware, sinks: Sequence[Sink]) -> Checkpoint:
    """Tokenizers, codes and the model, each gone on with where it was stopped, and the checkpoint."""
    first_before_others(lambda: check_unchanged(dataset, out))
    config, made, stage = begun.config, tokenized(dataset, begun, out, hardware, sinks), out / "stages" / "omni"
    model = fit_omni(
        new_model(made, config, config.seed),
        made.tokenizers,
        made.training,
        config.training,
        stage,
        config.seed,
        validation=made.validation,
        hardware=hardware,
        show=Samples(dataset, made.used, made.training, made.validation, stage, config.training.optim.steps),
        sinks=sinks,
    )
    drafts, optim = made.drafts, config.training.optim
    at_once = hardware.most_at_once(optim.batch_size)
    # What is sharded may be too large for one GPU.
    device = own_device("cpu" if hardware.parallel == "fsdp" and world() > 1 else hardware.device)
    if is_first():
        with by_itself():
            weigh_drafts(
                model, made.tokenizers, made.codes, drafts, config.seed, validation=made.validation,
                at_once=at_once, device=device, dtype=autocast_dtype(optim.precision, device),
            )  # fmt: skip
            provenance = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "seed": config.seed}
            provenance["brain_tokenizer"] = fingerprint(made.tokenizers.brain)
            provenance |= {"brainjanus": software()["brainjanus"], "processes": world()}
            provenance["device"] = told_device(own_device(hardware.device))
            spaces = {subject: dataset.space(subject) for subject in dataset.subjects}
            units = {subject: dataset.units(subject) for subject in dataset.subjects}
            checkpoint = Checkpoint(made.tokenizers, model, provenance, spaces, units, drafts)
            checkpoint.save(out)
    wait()
    return checkpoint if is_first() else Checkpoint.load(out)


def check_unchanged(dataset: Dataset, out: Path) -> None:
    """Compare the dataset's files with their checksums, once, and again when one of them was touched.

    Raises UserError naming the first that was changed.
    """
    files = {name: dataset.path / name for name in dataset.manifest["files"]}
    found = {name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in files.items()}
    record = out / "codes" / "dataset.json"
    if record.exists() and read_json(record) == found:
        return
    dataset.verify()
    with written_beside(record) as beside:
        beside.write_text(json.dumps(found))


class Settled(NamedTuple):
    """Settings that fit the data. saved: the brain tokenizer that was given. captions: those of training."""

    config: RunConfig
    saved: SavedTokenizer | None
    janus: JanusFolder | None
    captions: list[str]


def settle(dataset: Dataset, config: RunConfig, tokenizer: Path | str | None) -> Settled:
    """Settings with what a given tokenizer, a language model and Janus decide.

    Raises UserError if they do not fit the data.
    """
    saved = None if tokenizer is None else load_tokenizer(tokenizer)
    if saved is not None:
        saved.check_trained_on(dataset.name, dataset.fingerprint, dataset.subjects)
        config = replace(config, brain_tokenizer=saved.tokenizer.config)
    if config.omni.backbone.startswith(LLAMA):
        llama = open_llama(Path(config.omni.backbone.removeprefix(LLAMA)))
        decoder = replace(llama.decoder, dropout=config.omni.decoder.dropout)
        config = replace(config, omni=replace(config.omni, decoder=decoder, entry_scale=llama.entry_scale))
    janus = None if config.janus is None else open_janus(config.janus, image_tokens=config.janus_tokens)
    if janus is not None:
        config = replace(config, omni=omni_config(janus, config.omni))
    return Settled(config, saved, janus, check_fits(dataset, config, janus))


class Tokenized(NamedTuple):
    """What models are trained from. used: the tokenizers of what the data has. codes: the training split; training,
    validation: what is trained on, and what is held out. precision: of weights that come from Janus."""

    tokenizers: Tokenizers
    used: Tokenizers
    codes: Codes
    drafts: Drafts
    training: Codes
    validation: Codes | None
    janus: JanusFolder | None
    precision: str


def tokenized(dataset: Dataset, begun: Settled, out: Path, hardware: Hardware, sinks: Sequence[Sink] = ()) -> Tokenized:
    """Train the tokenizers in `out`, or go on with that, and tokenize the data there."""
    config, saved, janus, captions = begun
    stages, precision = out / "stages", "auto"

    torch.manual_seed(config.seed)  # initial weights only; training draws from generators of its own
    orders = {subject: torch.from_numpy(np.array(dataset.space(subject).order)) for subject in dataset.subjects}
    brain = BrainTokenizer(config.brain_tokenizer, orders)
    if saved is not None:
        brain.load_state_dict({name: saved.tokenizer.state_dict()[name] for name in brain.state_dict()})
    else:
        stage, device = stages / "brain", Hardware(hardware.device)
        first_before_others(
            lambda: fit_brain_tokenizer(
                brain,
                dataset,
                config.brain_training,
                stage,
                config.seed,
                config.brain_objective,
                hardware=device,
                sinks=sinks,
            )
        )
    if janus is not None:
        janus = with_text_length(janus, dataset, config.text_tokenizer.max_length)
        # What is trained in all its parts is held in float32; what stays as it is, as it was delivered.
        precision = "float32" if config.training.trained == "full" else "auto"
        tokenizers = janus_tokenizers(janus, brain, precision=precision)
    else:
        tokenizers = fit_tokenizers(dataset, config, brain, captions, stages, hardware, sinks)

    image = tokenizers.image if dataset.image_size is not None else None
    text = tokenizers.text if captions else None
    inputs = [(config.omni.image_input, image), (config.omni.text_input, text)]
    features = [name for name, tokenizer in inputs if tokenizer is not None and name != "codes"]
    used = replace(tokenizers, image=image, text=text)
    where = own_device(hardware.device)
    codes = encode_split(dataset, used, "train", features, out / "codes", where)
    codes = replace(codes, shown=config.training.shown)
    pieces = codes.pieces() if codes.caption_codes is not None else None
    solved = solve_drafts(
        dataset, codes.descriptions(), config.seed, codes.described(config.omni), pieces, codes.small_pictures()
    )
    with progress("scatter of single trials", len(solved.whole.drafts.ranks)) as advance:
        for number, subject in enumerate(solved.whole.drafts.ranks):
            solved.whole.drafts.scatter(subject).solve(codes.residuals(subject).numpy())
            advance(number + 1, None)
    codes = replace(codes, solved=solved)
    measure_drafts(codes, solved.whole.drafts, config.omni, config.seed)
    training, validation = held_out(dataset, used, codes, config, features, out / "codes", where)
    return Tokenized(tokenizers, used, codes, solved.whole.drafts, training, validation, janus, precision)


def new_model(made: Tokenized, config: RunConfig, seed: int) -> OmniModel:
    """A model that is not trained yet."""
    codes, janus = made.codes, made.janus
    brain, image = made.tokenizers.brain, made.tokenizers.image
    sizes = {name: (values.shape[1], values.shape[2]) for name, values in codes.features.items()}
    if made.drafts.guessed:
        channels = channels_of(made.drafts.guessed)
        sizes[GUESS] = made.drafts.guessed // channels, channels  # of mean 0 and spread 1, as they are
    torch.manual_seed(seed)
    if janus is not None:
        sizes = {name: size for name, size in sizes.items() if name != JANUS}
        model = janus_model(janus, made.tokenizers, config.omni, sizes, precision=made.precision)
        model.load_feature_statistics({name: codes.sample_of_features(name) for name in sizes if name != GUESS})
    else:
        omni = config.omni if config.omni.image_input in sizes else replace(config.omni, sight=False)  # nothing to see
        model = OmniModel(omni, interface_of(made.tokenizers, sizes))
        begin(model.decoder, omni.backbone)
        model.load_codebooks(image.quantizer.codebook if image else model.image_codebook, brain.quantizer.codebook)
        model.load_feature_statistics({name: codes.sample_of_features(name) for name in sizes if name != GUESS})
    return model


def held_out(
    dataset: Dataset,
    tokenizers: Tokenizers,
    codes: Codes,
    config: RunConfig,
    features: Sequence[str],
    store: Path,
    device: torch.device,
) -> tuple[Codes, Codes | None]:
    """What is trained on, and what losses are measured on meanwhile and experts weighed on at the end: the split "val",
    if every subject has one; otherwise some stimuli of the training split, which then are not trained on, at least
    LEAST_HELD_OUT if they are no more than a quarter. None if there would be too few, or no share is to be held out.

    The test split is no part of either. device: where a split is encoded.
    """
    if has_validation(dataset):
        val = encode_split(dataset, tokenizers, "val", features, store, device)
        return codes, replace(val, solved=codes.solved.for_others(len(val.ids)) if codes.solved else None)
    share = config.training.validation
    if not share or len(codes.ids) < 4 * LEAST_HELD_OUT:
        return codes, None
    count = max(round(share * len(codes.ids)), LEAST_HELD_OUT)
    apart = torch.zeros(len(codes.ids), dtype=torch.bool)
    apart[torch.randperm(len(apart), generator=generator_of(config.seed, HELD_OUT))[:count]] = True
    return codes.among(~apart), codes.among(apart)


def has_validation(dataset: Dataset) -> bool:
    """Whether every subject has a split "val"."""
    return all(dataset.trials(subject).stimuli("val") for subject in dataset.subjects)


def fit_tokenizers(
    dataset: Dataset,
    config: RunConfig,
    brain: BrainTokenizer,
    captions: list[str],
    stages: Path,
    hardware: Hardware,
    sinks: Sequence[Sink],
) -> Tokenizers:
    """Tokenizers of pictures and captions, trained on those of the training split, where the dataset has such."""
    image = text = None
    if dataset.image_size is not None:
        made = ImageTokenizer(config.image_tokenizer)
        pixels, _ = pictures_of_each(dataset, dataset.split_ids("train"))
        stage, device = stages / "image", Hardware(hardware.device)
        image = first_before_others(
            lambda: fit_image_tokenizer(
                made, pixels, config.image_training, stage, config.seed, hardware=device, sinks=sinks
            )
        )
    if captions:
        # Pieces are learnt of the training split alone; the others have to fit.
        text = TextTokenizer.fit(captions, config.text_tokenizer, longest_among=every_caption(dataset))
    return Tokenizers(brain, image, text)


def with_text_length(janus: JanusFolder, dataset: Dataset, length: int | None) -> JanusFolder:
    """The same, whose texts are at most so many codes long, or as long as the longest caption."""
    text = JanusTextTokenizer.read(janus.path, janus.text)
    longest = max((len(pieces) + 1 for pieces in text.pieces(every_caption(dataset))), default=text.max_length)
    return replace(janus, text=replace(janus.text, max_length=length or longest))


def every_caption(dataset: Dataset) -> list[str]:
    return [caption for stimulus in dataset.stimulus_ids for caption in dataset.captions(stimulus)]


def check_fits(dataset: Dataset, config: RunConfig, janus: JanusFolder | None = None) -> list[str]:
    """Say what is wrong with a dataset or its settings before anything is trained; returns the training captions."""
    if config.training.trained != "full" and janus is None:
        raise UserError(
            f"training.trained: expected full for a model that starts anew, got {config.training.trained}, "
            "which would leave a random decoder as it is. Give the weights that it starts from (--janus), or train all."
        )
    ids = dataset.split_ids("train")
    captioned = any(dataset.captions(stimulus) for stimulus in ids)
    captions = [caption for group in captions_of_each(dataset, ids) for caption in group] if captioned else []
    if captioned:
        captions_of_each(dataset, dataset.split_ids("test"))
        if has_validation(dataset):
            captions_of_each(dataset, dataset.split_ids("val"))
    for subject in dataset.subjects:
        for split, least in LEAST_STIMULI.items():
            found = len(dataset.trials(subject).stimuli(split))
            if found < least:
                raise UserError(
                    f"{dataset.path}: expected at least {least} {split} stimuli of {subject}, got {found}. Its scores "
                    "and their linear baseline need so many: add stimuli, or split the data anew."
                )
    if janus is None and config.omni.image_input == JANUS and JANUS not in dataset.feature_names:
        raise UserError(
            "omni.image_input 'janus': expected Janus-Pro, whose understanding encoder reads the pictures, got none. "
            "Give --janus, its folder or its name on the hub."
        )
    size, expected = dataset.image_size, config.image_tokenizer.image_size
    if janus is not None and size not in (None, janus.image.image_size):
        raise UserError(
            f"{dataset.path}: expected pictures of {janus.image.image_size} pixels a side, as Janus takes them, got "
            f"{size}. Prepare the dataset with --image-size {janus.image.image_size}."
        )
    if janus is None and size not in (None, expected):
        raise UserError(
            f"{dataset.path}: expected pictures of {expected} pixels a side, as image_tokenizer.image_size says, got "
            f"{size}. Prepare the dataset with --image-size {expected}, or train with --image-tokenizer.image-size "
            f"{size} and a fitting --image-tokenizer.codes-per-side."
        )
    inputs = [("text", config.omni.text_input, captioned, ()), ("image", config.omni.image_input, size, ENCODERS)]
    for name, encoder, there, built_in in inputs:
        known = ["codes", *built_in, *dataset.feature_names]
        of_janus = [JANUS] if name == "image" and janus is not None else []
        if there and encoder not in known + of_janus and not (name == "image" and can_encode(encoder)):
            raise UserError(
                f"omni.{name}_input: expected one of {', '.join(known + of_janus)}, got '{encoder}'. Correct the name, "
                "or prepare the dataset with these features."
            )
    available = {name for name, _, there, _ in inputs if there}
    for tasks in filter(None, (config.training.tasks, config.training.tasks_at_end)):
        expand_tasks(tasks, dataset.subjects, available)
    count, validated = round(config.training.validation * len(ids)), has_validation(dataset)
    if config.training.patience and not validated and count < LEAST_HELD_OUT:
        raise UserError(
            f"training.patience: expected at least {LEAST_HELD_OUT} held-out stimuli to judge by, got {count} "
            f"({config.training.validation:g} of {len(ids)} training stimuli). Raise training.validation, or give "
            'the dataset a split "val".'
        )
    return captions


def claim(out: Path, dataset: Dataset, config: object, **made_from: str | None) -> None:
    """Make `out` the folder of this run, or make sure that it is. made_from: fingerprints of what else enters."""
    facts: dict[str, Any] = {
        "dataset": dataset.name,
        "path": str(dataset.path.resolve()),
        "fingerprint": dataset.fingerprint,
        "config": to_dict(config),
        **{name: value for name, value in made_from.items() if value is not None},
    }
    if (out / "config.json").exists():
        found = read_json(out / "config.json")
        if found.get("fingerprint") != dataset.fingerprint:
            raise UserError(
                f"{out}: expected a run on this dataset ({dataset.name}, {dataset.fingerprint[:12]}), got one on "
                f"'{found.get('dataset')}' ({str(found.get('fingerprint'))[:12]}). Choose another --out."
            )
        changed = different(found.get("config", {}), facts["config"])
        if changed := [setting for setting in changed if setting.split()[0].rpartition(".")[2] not in WATCHED]:
            raise UserError(
                f"{out}: expected the settings that this run was started with, got others ({'; '.join(changed[:4])}). "
                f"Leave these options out, go on with --config {out / 'config.json'}, or choose another --out."
            )
        for name, value in made_from.items():
            if found.get(name) != value:
                raise UserError(
                    f"{out}: expected the {name} that it was begun with ({str(found.get(name))[:12]}), got another "
                    f"({str(value)[:12]}). Give the same one, or choose another --out."
                )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: expected an empty or a new folder, or one that holds a run, got something else. "
            "Choose another --out: nothing there was touched."
        )
    with written_beside(out / "config.json") as beside:
        beside.write_text(json.dumps(facts, indent=1))


def different(old: Mapping, new: Mapping, key: str = "") -> list[str]:
    """Which settings of two configs differ, as 'training.optim.steps 900 -> 300'."""
    found = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += different(a, b, f"{key}{name}.")
        elif a != b:
            found.append(f"{key}{name} {a} -> {b}")
    return found


def directions_of(checkpoint: Checkpoint) -> list[Direction]:
    """The directions between the brain and the other modalities that the model was trained on."""
    directions: list[Direction] = []
    if checkpoint.tokenizers.text is not None:
        directions += ["brain->text"]
    if checkpoint.tokenizers.image is not None:
        directions += ["brain->image", "image->brain"]
    if checkpoint.tokenizers.text is not None:
        directions += ["text->brain"]
    return directions


def lacking(dataset: Dataset) -> set[str]:
    """What a dataset has none of: a model that began as Janus may know it nevertheless."""
    captions = any(dataset.captions(stimulus) for stimulus in dataset.split_ids("test"))
    return {name for name, there in (("image", dataset.image_size), ("text", captions)) if not there}


def condition(checkpoint: Checkpoint, dataset: Dataset, name: str, ids: Sequence[str], split: str = "test") -> object:
    """What the model is shown of some stimuli: rows for `generate`, in the order of `ids`.

    A brain is the mean response over repeats; a text is the first caption.
    """
    if name.startswith("brain:"):
        averages = dataset.averages(name.removeprefix("brain:"), split)
        row_of = {stimulus: row for row, stimulus in enumerate(averages.stimulus_ids)}
        missing = [stimulus for stimulus in ids if stimulus not in row_of]
        if missing:
            raise UserError(
                f"{name}: expected a {split} response to every stimulus, got none to '{missing[0]}'. "
                "Did this subject see it? trials.tsv lists what was shown."
            )
        return averages.responses[[row_of[stimulus] for stimulus in ids]]
    encoder = checkpoint.model.config.text_input if name == "text" else checkpoint.model.config.image_input
    if encoder != "codes":
        new = checkpoint.tokenizers.vision is not None if encoder == JANUS else can_encode(encoder)
        see = on_device(checkpoint.tokenizers.encoder(encoder), device_of(checkpoint)) if new else None
        return features_of(dataset, encoder, ids, see)
    if name == "text":
        return [group[0] for group in captions_of_each(dataset, ids)]
    return dataset.images(ids)


def predict(
    checkpoint: Checkpoint, dataset: Dataset, direction: Direction, subject: str, config: GenerationConfig
) -> Predictions:
    """Predictions for all test stimuli of one subject, ready to be scored.

    The expected response to a stimulus with several captions is the mean of the responses expected from each.
    """
    ids = dataset.averages(subject, "test").stimulus_ids
    source, target = (f"brain:{subject}" if name == "brain" else name for name in direction.split("->"))
    shown = condition(checkpoint, dataset, source, ids)
    if direction == "text->brain" and config.estimate == "mean" and isinstance(shown, list):
        captions = [dataset.captions(stimulus) for stimulus in ids]
        flat = [caption for group in captions for caption in group]
        rows = generate(checkpoint, {source: flat}, target, config)
        assert isinstance(rows, torch.Tensor)
        values: torch.Tensor | list[str] = torch.stack([g.mean(dim=0) for g in rows.split([len(g) for g in captions])])
    else:
        values = generate(checkpoint, {source: shown}, target, config)
    estimator = estimator_name(config, target)
    if isinstance(values, torch.Tensor):
        array = (values * 255 if target == "image" else values).numpy()
        return Predictions(direction, subject, ids, estimator, array)
    return Predictions(direction, subject, ids, estimator, values)


def estimators_of(direction: Direction, seed: int) -> list[GenerationConfig]:
    """How each direction is estimated in an evaluation; the first is the main one.

    Guidance takes from an expected picture what all pictures share, which identification punishes and PixCorr rewards.
    """
    if direction == "brain->text":
        return [GenerationConfig(temperature=0.0, seed=seed)]
    mean, sample = GenerationConfig(estimate="mean", seed=seed), GenerationConfig(estimate="sample", seed=seed)
    return [mean, replace(mean, guidance=GUIDANCE), sample] if direction == "brain->image" else [mean, sample]


def estimator_name(config: GenerationConfig, target: str) -> str:
    """As it stands in a record: "mean", "sample", "greedy", "mean, guidance 2"."""
    name = config.estimate if target != "text" else "greedy" if config.temperature == 0 else "sample"
    return name if config.guidance == 1 else f"{name}, guidance {config.guidance:g}"


def evaluate(
    run: Path | str,
    dataset: Dataset | Path | str | None = None,
    out: Path | str | None = None,
    *,
    seed: int = 0,
    title: str | None = None,
    extras: Extras | None = None,
    device: torch.device | str = "cpu",
) -> Scored:
    """Score all directions on the test split; writes scores.json and report.html into `out` (default: RUN/scores), and
    the scores into the run's card.

    dataset: default: where it was when the run was trained. extras: pretrained networks for more metrics. device: where
    the model predicts.
    What is predicted is kept until it is scored: an evaluation that was stopped goes on.
    Raises UserError if the dataset is not the one that the run was trained on: its z-scoring and its splits are part
    of the model.
    """
    run = Path(run)
    out = run / "scores" if out is None else Path(out)
    checkpoint = Checkpoint.load(run, device=device)
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset or dataset_of(run))
    check_same_data(checkpoint, dataset, run)
    check_leaks(dataset, dataset.subjects)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: expected a folder for scores.json and report.html, got a file. Choose another --out.")
    options = ScoreOptions(seed=seed, extras=extras or Extras())
    with kept(out, deciding(run, checkpoint, dataset, seed)) as found:
        return scored_and_told(run, checkpoint, dataset, out, found, options, title or f"BrainJanus on {dataset.name}")


def deciding(run: Path, checkpoint: Checkpoint, dataset: Dataset, seed: int) -> dict[str, object]:
    """What decides what is predicted: files of the run by size and time, and whatever computes."""
    files = [run / "model.json", *sorted([*run.glob("*.safetensors"), *run.glob("tokenizers/*")])]
    see = checkpoint.model.config.image_input
    network = checkpoint.tokenizers.encoder(see) if can_encode(see) else None
    own = max(file.stat().st_mtime_ns for file in Path(__file__).parent.rglob("*.py"))
    return {
        "run": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "dataset": dataset.fingerprint,
        "seed": seed,
        "device": device_of(checkpoint).type,
        "vision network": fingerprint(network) if isinstance(network, torch.nn.Module) else None,
        "extensions": loaded_extensions(),
        "software": {**software("transformers"), "changed": own},
    }


def scored_and_told(
    run: Path, checkpoint: Checkpoint, dataset: Dataset, out: Path, found: Kept, options: ScoreOptions, title: str
) -> Scored:
    """`evaluate`, once it is known that all fits together."""
    config, losses = read_json(run / "config.json").get("config", {}), read_logs(run)
    predictions = [
        found.of(
            f"{direction.replace('->', '-to-')}-{subject}-{number}",
            partial(predict, checkpoint, dataset, direction, subject, estimator),
        )
        for direction in directions_of(checkpoint)
        if not lacking(dataset) & set(direction.split("->"))
        for subject in subjects_of(checkpoint, dataset)
        for number, estimator in enumerate(estimators_of(direction, options.seed))
    ]
    scored = []
    with progress("predictions scored", len(predictions)) as advance:
        for number, prediction in enumerate(predictions):
            scored.append(score(dataset, prediction, options))
            advance(number + 1, None)
    records = [record for one in scored for record in one.records]
    skipped = {metric: why for one in scored for metric, why in one.skipped.items()}
    warnings = list(dict.fromkeys(warning for one in scored for warning in one.warnings))
    if checkpoint.tokenizers.image is not None and dataset.image_size is not None:
        records += restored_records(checkpoint, dataset, predictions, options, found)
    records = summary(records) + records
    save_scores(records, out / "scores.json")
    write_report(
        out / "report.html",
        dataset=dataset,
        records=records,
        examples=examples_of(dataset, predictions),
        maps=[
            m for p in main_predictions(predictions) if p.direction.endswith("brain") for m in map_examples(dataset, p)
        ],
        codebooks=codebook_usage(checkpoint, dataset),
        skipped=skipped,
        warnings=warnings,
        losses=losses,
        config=config,
        title=title,
    )
    leave_cards(run, dataset, records)
    return Scored(records, skipped, warnings)


def dataset_of(run: Path, remedy: str | None = None) -> Path:
    """Where the dataset was when the run was trained. Raises UserError if it is not there any more.

    remedy: how to name its folder in another command than `evaluate`.
    """
    found = read_json(run / "config.json").get("path")
    if not isinstance(found, str) or not (Path(found) / "dataset.json").is_file():
        raise UserError(
            f"{run}: expected the dataset where it was when this run was trained ({found or 'not recorded'}), got no "
            f"dataset there. Was it moved? Give its folder: {remedy or f'brainjanus evaluate {run} DATASET'}."
        )
    return Path(found)


def restored_records(
    checkpoint: Checkpoint, dataset: Dataset, predictions: Sequence[Predictions], options: ScoreOptions, found: Kept
) -> list[Record]:
    """Encode, then decode: the responses expected to pictures, decoded by the same model; and the control."""

    def restored(prediction: Predictions) -> Predictions:
        pictures = generate(checkpoint, {f"brain:{prediction.subject}": prediction.values}, "image", estimator)
        assert isinstance(pictures, torch.Tensor)
        ids = prediction.stimulus_ids
        return Predictions("brain->image", prediction.subject, ids, "restored", (pictures * 255).numpy())

    records = []
    estimator = GenerationConfig(estimate="mean", seed=options.seed)
    name = estimator_name(estimator, "brain")
    for prediction in predictions:
        if (prediction.direction, prediction.estimator) == ("image->brain", name):
            pictures = found.of(f"restored-{prediction.subject}", partial(restored, prediction)).values
            assert isinstance(pictures, np.ndarray)
            records += encode_decode_records(dataset, prediction, pictures, options)
            records += control_records(dataset, prediction.subject, prediction.stimulus_ids, options)
    return records


def read_logs(run: Path) -> list[dict]:
    """All lines of the logs of a run, stage by stage."""
    lines = []
    for log in (run / "stages" / stage / "log.jsonl" for stage in STAGES):
        try:
            lines += [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        except ValueError as error:
            raise UserError(f"{log}: expected JSON lines, got '{error}'. Delete it to report without it.") from error
    return lines


def main_predictions(predictions: Sequence[Predictions]) -> list[Predictions]:
    """The first subject's predictions of each direction, by its main estimator."""
    first: dict[Direction, Predictions] = {}
    for prediction in predictions:
        first.setdefault(prediction.direction, prediction)
    return list(first.values())


def examples_of(dataset: Dataset, predictions: Sequence[Predictions]) -> list[ImageExample | CaptionExample]:
    """Pictures and captions decoded from the first subject."""
    examples: list[ImageExample | CaptionExample] = []
    for main in main_predictions(predictions):
        if main.direction == "brain->image":
            same = [p for p in predictions if (p.direction, p.subject) == (main.direction, main.subject)]
            examples += image_examples(dataset, same)
        if main.direction == "brain->text":
            examples += caption_examples(dataset, main)
    return examples


def codebook_usage(checkpoint: Checkpoint, dataset: Dataset) -> list[CodebookUsage]:
    """How often each code occurs in the test split: brain codes of all subjects, picture codes."""
    brain, image = checkpoint.tokenizers.brain, checkpoint.tokenizers.image
    codes = [
        codes_in(checkpoint, f"brain:{subject}", dataset.averages(subject, "test").responses).flatten()
        for subject in subjects_of(checkpoint, dataset)
    ]
    usage = [CodebookUsage("brain", count(torch.cat(codes), brain.config.quantizer.num_entries))]
    if image is not None and dataset.image_size is not None:
        seen = codes_in(checkpoint, "image", dataset.images(dataset.split_ids("test")))
        usage.append(CodebookUsage("image", count(seen.flatten(), image.config.quantizer.num_codes)))
    return usage


def count(codes: torch.Tensor, num_codes: int) -> np.ndarray:
    return torch.bincount(codes, minlength=num_codes).numpy()


def subjects_of(checkpoint: Checkpoint, dataset: Dataset) -> list[str]:
    """The subjects of the model that a dataset has: all, or those that were added to the model with this dataset."""
    adapted = checkpoint.provenance.get("adapted", {})
    here = [subject for subject, made_from in adapted.items() if made_from == dataset.fingerprint]
    return here or [subject for subject in checkpoint.tokenizers.brain.subjects if subject not in adapted]


def check_same_data(checkpoint: Checkpoint, dataset: Dataset, run: Path) -> None:
    trained_on = checkpoint.provenance.get("fingerprint")
    adapted = checkpoint.provenance.get("adapted", {}).values()
    if dataset.fingerprint not in (trained_on, *adapted):
        raise UserError(
            f"{run}: expected the dataset it was trained on ({checkpoint.provenance.get('dataset')}, "
            f"{str(trained_on)[:12]}), got {dataset.name} ({dataset.fingerprint[:12]}). Its test stimuli may have been "
            "training stimuli of the model, and its z-scoring differs: give the same dataset."
        )
