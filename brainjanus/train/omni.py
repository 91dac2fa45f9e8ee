"""Training of the unified model on all of its tasks.

A step draws a task and a batch for it. Half of the rows are predicted code by code, each seeing the codes before it
(the likelihood that samples are drawn from); in the other half all codes of the target are hidden, each code is
predicted on its own, and beside the likelihood the decoded expectation is pulled to the response that was measured:
hard codes of noisy responses are noisy labels, so the expectation is trained, not only the likelihood.
Source: BrainJanus (arXiv 2606.30319) for the tasks; Ho & Salimans 2022 for dropped conditions (guidance).
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.core.fused import nats
from brainjanus.core.processes import is_first, own_device
from brainjanus.core.progress import progress
from brainjanus.model.checkpoint import Tokenizers
from brainjanus.model.draft import PICTURE, SHOWN, TOLD, Drafts, enlarged, lean_of
from brainjanus.model.lora import LoraConfig, save_lora
from brainjanus.model.omni import OmniConfig, OmniModel
from brainjanus.model.sequence import Block, Task, modality_of, subject_of, total_length
from brainjanus.tokenizers.text import END, up_to_end
from brainjanus.train.codes import Batch, Codes
from brainjanus.train.fit import Steps, Watch, fit
from brainjanus.train.flops import step_flops
from brainjanus.train.optim import OptimConfig, autocast_dtype
from brainjanus.train.parallel import CPU, Hardware
from brainjanus.train.state import generator_of
from brainjanus.train.trained import Trained, keep, prepare, recompute, release
from brainjanus.train.watch import Sink, Work, moved

VALIDATION_ROWS, VALIDATION_SEED = 96, 17  # of each direction
NEARNESS = [10 ** (power / 8) for power in range(-16, 17)]  # inverse variances that are tried
LEAST_WEIGHED = 8  # stimuli of validation that drafts are weighed on


def default_tasks() -> dict[str, float]:
    return {
        "image->brain": 0.8,
        "text->brain": 1.0,
        "brain->image": 0.5,
        "brain->text": 2.3,
        "image+text->brain": 0.4,
        "brain->brain": 0.25,
        "part->brain": 0.3,
    }


@dataclass(frozen=True)
class OmniTrainingConfig:
    """optim: steps and rates. trained: "full", or the brain's parts alone ("brain"), or these with LoRA in the decoder
    ("lora", whose size `lora` says). recompute: keep less for the backward pass and compute it again there, in a third
    more time. tasks: how often each direction is drawn; several conditions are joined by '+'.

    In a direction "brain" is each subject in turn (from brain to brain: each pair), "part" a part of the same brain;
    "brain:subj01" is that subject alone.
    tasks_at_end: what the weights of tasks, drawn towards it step by step, come to; None: they stay.
    dropped: share of rows whose conditions are withheld. blurred: share of the numbers of features that a row is not
    shown, the others being raised accordingly (dropout; drafts are made of all of them). excerpts: share of captions,
    as conditions, of which a stretch alone is shown, or left out: prompts that are shorter than captions, and words
    that captions always say together, are told apart by that. hidden: share of rows whose target is hidden (brains and
    pictures). expectation: weight of the squared error of their decoded expectation.
    shown: which response stands for a repeated stimulus: "averages", mostly that of all its repeats, otherwise a single
    one, or "repeats", the mean of some of them, drawn anew each time and tokenized on the fly.
    validation: share of the training stimuli that is held out of training where the dataset has no split "val", at
    least 16 of 64 or more; on them losses are measured, and the model is weighed against linear drafts.
    validate_every: steps between measurements of the losses there; 0: none. patience: see `Watch`. sample_every: steps
    between samples in all directions; 0: none.
    """

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=2600, batch_size=64, learning_rate=4e-3))
    trained: Trained = "full"
    lora: LoraConfig = field(default_factory=LoraConfig)
    recompute: bool = False
    tasks: Mapping[str, float] = field(default_factory=default_tasks)
    tasks_at_end: Mapping[str, float] | None = None
    dropped: float = 0.1
    blurred: float = 0.0
    excerpts: float = 0.0
    hidden: float = 0.5
    expectation: Mapping[str, float] = field(default_factory=lambda: {"brain": 2.0, "image": 20.0})
    shown: Literal["averages", "repeats"] = "averages"
    validation: float = 0.02
    validate_every: int = 200
    patience: int = 0
    sample_every: int = 500

    def __post_init__(self) -> None:
        problems = [
            f"{n} must lie in [0, 1], got {getattr(self, n)}"
            for n in ("dropped", "excerpts", "hidden")
            if not 0 <= getattr(self, n) <= 1
        ]
        problems += [
            f"{n} must be at least 0, got {getattr(self, n)}"
            for n in ("validate_every", "patience", "sample_every")
            if getattr(self, n) < 0
        ]
        if not 0 <= self.blurred < 1:
            problems.append(f"blurred must lie in [0, 1), got {self.blurred}")
        if not 0 <= self.validation <= 0.5:
            problems.append(f"validation must lie in [0, 0.5], got {self.validation}")
        problems += [
            f"expectation of '{name}' must be at least 0, got {weight}"
            for name, weight in self.expectation.items()
            if not 0 <= weight < math.inf
        ]
        if self.shown not in ("averages", "repeats"):
            problems.append(f"shown must be averages or repeats, got '{self.shown}'")
        if self.patience and not self.validate_every:
            problems.append("patience must come with validate_every, got none of it")
        every = [*self.tasks, *(self.tasks_at_end or {})]
        problems += [f"task '{task}' must have the form condition->target" for task in every if task.count("->") != 1]
        problems += [
            f"task '{task}' must have a weight of at least 0"
            for task, weight in (*self.tasks.items(), *(self.tasks_at_end or {}).items())
            if not 0 <= weight < math.inf
        ]
        if problems:
            raise UserError("omni training config: " + "; ".join(problems) + ". Correct the config.")


class Drawn(NamedTuple):
    """Some rows of a step's batch. dropped: rows whose conditions are withheld. hidden: rows whose target is.

    judged: whether the decoded expectation of any row of the whole batch is.
    """

    task: Task
    batch: Batch
    dropped: Bool[Tensor, "b"]
    hidden: Bool[Tensor, "b"]
    judged: bool


def expand_tasks(tasks: Mapping[str, float], subjects: tuple[str, ...], available: set[str]) -> dict[Task, float]:
    """One task per subject out of each direction whose modalities the data has.

    A direction that names its subjects (brain:subj01->brain:subj02) is that one task, with all of the weight.
    Raises UserError for an unknown subject, and for two brains that are not named: which are paired is not guessed.
    """
    expanded: dict[Task, float] = {}
    for direction, weight in tasks.items():
        if weight == 0:
            continue
        left, target = direction.split("->")
        names = [*filter(None, left.split("+")), target]
        if strange := [name for name in names if modality_or_none(name) is None]:
            raise UserError(
                f"task '{direction}': expected conditions and a target out of image, text, brain and part, or a named "
                f"brain:SUBJECT, got '{strange[0]}'. Correct the task."
            )
        explicit = [subject for subject in map(subject_of, names) if subject]
        unknown = [subject for subject in explicit if subject not in subjects]
        if unknown:
            raise UserError(
                f"task '{direction}': expected one of the subjects {', '.join(subjects)}, got '{unknown[0]}'. "
                "Correct the task."
            )
        if "brain" in names and (explicit or names[:-1].count("brain") > 1):
            raise UserError(
                f"task '{direction}': expected the names of the subjects of its brains ({', '.join(subjects)}), got "
                "'brain', which may be any. Name them all, as in brain:subj01->brain:subj02."
            )
        if not {name for name in names if subject_of(name) is None} <= available | {"brain", "part"}:
            continue
        tasks_here = list(named_tasks(names, subjects))
        for task in tasks_here:
            expanded[task] = expanded.get(task, 0.0) + weight / len(tasks_here)
    if not any(tasks.values()):
        raise UserError(
            f"tasks: expected at least one with a weight above 0, got {', '.join(tasks) or 'none at all'} without. "
            "Give one of them a weight."
        )
    if not expanded:
        raise UserError(
            f"tasks: expected at least one of {', '.join(tasks)} that the data has the modalities for, got data with "
            f"brain, {', '.join(sorted(available)) or 'nothing else'}. Add captions or pictures to the dataset."
        )
    return expanded


def modality_or_none(name: str) -> str | None:
    head, colon, subject = name.partition(":")
    known = (head in ("image", "text") and not colon) or (head in ("brain", "part") and (subject or not colon))
    return head if known else None


def named_tasks(names: Sequence[str], subjects: Sequence[str]) -> Iterator[Task]:
    """The tasks that a direction stands for: `brain` is each subject, `part` a part of the target's (or of each) brain;
    from `brain` to `brain` are all pairs of different subjects."""
    between = "brain" in names[:-1] and names[-1] == "brain"
    for subject in subjects if {"brain", "part"} & set(names) else ("",):
        for other in [s for s in subjects if s != subject] if between else [subject]:
            given = [f"brain:{other}" if n == "brain" else f"part:{subject}" if n == "part" else n for n in names[:-1]]
            yield Task(tuple(given), f"brain:{subject}" if names[-1] == "brain" else names[-1])


def draw(
    codes: Codes,
    task: Task,
    generator: torch.Generator,
    config: OmniTrainingConfig,
    model: OmniConfig,
    size: int,
    part: slice = slice(None),
) -> Drawn:
    """Those rows `part` of a batch of `size`; which conditions and targets are withheld is drawn for all rows."""
    target = modality_of(task.target)
    hidden = torch.arange(size) < round((0.0 if target == "text" else config.hidden) * size)
    judged = bool(hidden.any()) and config.expectation.get(target, 0) > 0
    batch = codes.batch(task, size, generator, model, part, pixels=judged)
    dropped = torch.rand(size, generator=generator) < config.dropped
    if config.blurred:
        shown = [blur(block, config.blurred, generator, size, part) for block in batch.conditions]
        batch = batch._replace(conditions=shown)
    if config.excerpts:
        told = [excerpt(block, config.excerpts, generator, size, part) for block in batch.conditions]
        batch = batch._replace(conditions=told)
    return Drawn(task, batch, dropped[part], hidden[part], judged)


def blur(block: Block, share: float, generator: torch.Generator, size: int, part: slice) -> Block:
    """The block with a share of the numbers of its features left out; drawn is for all rows of the batch."""
    if block.features is None or block.vectors is None:
        return block
    kept = torch.rand((size, *block.vectors.shape[1:]), generator=generator)[part] >= share
    return replace(block, kept=kept / (1 - share))


def excerpt(block: Block, share: float, generator: torch.Generator, size: int, part: slice) -> Block:
    """The caption with no more than a stretch of its codes, or without one, and its end, in a share of the rows ("a
    face"; "a face on the beach" of "a face with white hair on the beach"); drawn is for all rows of the batch."""
    if block.modality != "text" or block.codes is None or block.seen is None:
        return block
    cut, length, start = torch.rand((3, size, 1), generator=generator)[:, part]
    last = block.seen.sum(dim=1, keepdim=True) - 1
    count = (length * last).long() + 1  # of 1 to all codes
    first = (start * (last - count + 1)).long()
    place = torch.arange(block.length)
    stretch = (place >= first) & (place < first + count)
    kept = torch.where((cut < share / 2) | (count >= last), stretch, ~stretch)  # something always is
    return replace(block, seen=block.seen & (kept | (place == last) | (cut >= share)))


def counts_of(drawn: Drawn, text_end: int = END) -> Float[Tensor, "2"]:
    """How many codes, and how many sites or pixels, losses are means over."""
    target = drawn.batch.target
    assert target.codes is not None
    codes = target_mask(target.codes, text_end).sum() if target.modality == "text" else target.codes.numel()
    values = 0
    if drawn.judged:
        assert drawn.batch.continuous is not None
        continuous, judged = drawn.batch.continuous, drawn.batch.judged
        counted = judged if judged is not None else torch.ones_like(continuous, dtype=torch.bool)
        values = int(counted[drawn.hidden].sum())
    return torch.tensor([float(codes), float(values)])


def step_losses(
    model: Callable[..., Tensor],
    tokenizers: Tokenizers,
    drawn: Drawn,
    counts: Float[Tensor, "2"],
    config: OmniTrainingConfig,
    text_end: int = END,
) -> dict[str, Tensor]:
    """This part's share of the losses of a batch: "loss", the sum that is differentiated; "nats/...", the likelihood in
    nats per code; "mse/...", the squared error of the decoded expectation, in squared z or squared pixels.

    counts: those of the whole batch.
    """
    (conditions, target, continuous, _, beyond, judged), hidden = drawn.batch, drawn.hidden
    modality, direction = target.modality, drawn.task.direction
    conditions = [replace(block, dropped=drawn.dropped) for block in conditions]
    if target.lean is not None:
        target = replace(target, lean=target.lean * ~drawn.dropped[:, None, None])
    logits = model(conditions, target, hidden[:, None].expand(-1, target.length)).float()
    assert target.codes is not None
    of_codes = nats(logits, target.codes)
    seen = target_mask(target.codes, text_end) if modality == "text" else torch.ones_like(of_codes)
    likelihood = (of_codes * seen).sum() / counts[0]
    if not drawn.judged:
        return {"loss": likelihood, f"nats/{direction}": likelihood}
    error = likelihood.new_zeros(())
    if hidden.any():
        assert continuous is not None
        probabilities = logits[hidden].softmax(dim=-1)
        if target.subject is not None:
            expected = tokenizers.brain.decode_probabilities(probabilities, target.subject)
            if beyond is not None:  # of a row without conditions there is no draft
                expected = expected + beyond[hidden] * ~drawn.dropped[hidden, None]
        else:
            assert tokenizers.image is not None
            expected = tokenizers.image.decode_vectors(probabilities @ tokenizers.image.quantizer.codebook)
        squared = (expected.float() - continuous[hidden]).square()
        error = (squared if judged is None else squared[judged[hidden]]).sum() / counts[1]
    total = likelihood + config.expectation[modality] * error
    return {"loss": total, f"nats/{direction}": likelihood, f"mse/{direction}": error}


def target_mask(codes: Int[Tensor, "b l"], end: int = END) -> Float[Tensor, "b l"]:
    """1 up to and with the first end of each text, 0 behind it."""
    return up_to_end(codes, end).float()


@torch.no_grad()
def weigh_drafts(
    model: OmniModel,
    tokenizers: Tokenizers,
    codes: Codes,
    drafts: Drafts,
    seed: int,
    batches: int = 6,
    size: int = 128,
    *,
    validation: Codes | None = None,
    at_once: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Solve for how much of what the model adds to its drafts, or says in place of them, is to be believed: least
    squares on rows whose drafts are out of fold, of validation where a task has enough stimuli there, otherwise of
    training, less what so few stimuli may have flattered it by (see `believed`). Into `drafts`. The responses to
    pictures and words, and the pictures, are learnt by heart in training: without enough stimuli of validation the
    draft alone is believed there.

    A kind of draft that no task was trained with is weighed as well: that it is believed little has to be found, too.
    at_once: rows of a batch that are computed at a time; 0: all. device, dtype: where and in what the model computes;
    it is on the CPU afterwards.
    """
    device = torch.device(device)
    model.to(device)
    there, parts = tokenizers.on(device), parts_of(size, at_once or size)
    kinds = [(s, kind, some) for s in codes.brains for kind, some in drafted_tasks(codes, drafts, s).items()]
    with progress("drafts weighed", len(kinds)) as advance:
        for done, (subject, kind, some) in enumerate(kinds):
            advance(done, None)
            products: list[Float[Tensor, "2 b"]] = []
            enough = validation is not None and all(len(validation.stimuli_of(t)) >= LEAST_WEIGHED for t in some)
            if some and kind in (*TOLD, PICTURE) and not enough:
                drafts.trust(subject).of(kind).fill_(0)
                continue
            source = validation if validation is not None and enough else codes
            for number, rows in product(range(batches if some else 0), parts):
                task = some[number % len(some)]
                batch = source.batch(task, size, generator_of(seed, number), model.config, rows, weighing=True)
                if batch.draft is None:  # so few shared stimuli that a fold has none left
                    continue
                batch = moved(batch, device)
                assert batch.draft is not None and batch.continuous is not None
                hidden = torch.ones_like(batch.target.content, dtype=torch.bool)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    logits = model(batch.conditions, batch.target, hidden)
                p = logits.float().softmax(dim=-1)
                draft = batch.draft
                if kind == PICTURE:
                    assert there.image is not None
                    draft = enlarged(draft, batch.continuous)
                    added = there.image.decode_probabilities(p) - draft
                else:
                    added = there.brain.decode_probabilities(p, subject) - draft
                added = added if batch.beyond is None else added + batch.beyond
                missing = batch.continuous - draft
                if batch.judged is not None:
                    added = added * batch.judged
                products.append(torch.stack([(added * missing).flatten(1).sum(1), added.flatten(1).square().sum(1)]))
            if products:
                most = max(len(source.stimuli_of(task)) for task in some)
                drafts.trust(subject).of(kind).fill_(believed(torch.cat(products, dim=1).double().cpu(), most))
        advance(len(kinds), None)
    model.to("cpu")


def believed(products: Float[Tensor, "2 b"], num_stimuli: int) -> float:
    """How much of what is added is to be believed, from 0 to 1: the weight of least squares less its standard error
    over stimuli, so that what a few of them say by chance is not.

    products: of each row, what is added times what is missing, and times itself. num_stimuli: that rows were drawn
    from, with replacement.
    """
    total = products.sum(dim=1)
    if not total[1] > 0:
        return 0.0
    weight = total[0] / total[1]
    error = (products[0] - weight * products[1]).square().sum().sqrt() / total[1]
    error *= max(1.0, products.shape[1] / num_stimuli) ** 0.5
    return float((weight - error).clamp(0, 1))


@torch.no_grad()
def measure_drafts(
    codes: Codes, drafts: Drafts, model: OmniConfig, seed: int, batches: int = 8, size: int = 64
) -> None:
    """Find how near measured latents lie to those of drafts that the model is shown, and that did not see them: as near
    as makes the codes of measured responses, noise and all, the likeliest. Into `drafts`."""
    kinds = [
        (subject, kind, tasks)
        for subject in codes.brains
        for kind, tasks in drafted_tasks(codes, drafts, subject).items()
        if kind in SHOWN and tasks
    ]
    with progress("how near drafts are", len(kinds)) as advance:
        for done, (subject, kind, tasks) in enumerate(kinds):
            unlikely = torch.zeros(len(NEARNESS))
            for number in range(batches):
                batch = codes.batch(tasks[number % len(tasks)], size, generator_of(seed, number), model)
                if batch.draft is None:  # so few shared stimuli that a fold has none left
                    continue
                assert batch.target.codes is not None
                lean = lean_of(codes.tokenizer, batch.draft, subject, 1.0)  # in proportion to how near
                unlikely += torch.stack([nats(near * lean, batch.target.codes).mean() for near in NEARNESS])
            if unlikely.any():
                drafts.trust(subject).near(kind).fill_(NEARNESS[int(unlikely.argmin())])
            advance(done + 1, None)


def drafted_tasks(codes: Codes, drafts: Drafts, subject: str) -> dict[str, list[Task]]:
    """For each kind of draft of a response, and of a picture from it, the tasks that come with one and have stimuli."""
    others = [other for other, target in drafts.pairs if target == subject]
    reads = tuple(drafts.reads)
    tasks = {
        "part": [Task((f"part:{subject}",), f"brain:{subject}")],
        "brain": [Task((f"brain:{other}",), f"brain:{subject}") for other in others],
    } | {kind: [Task((kind,), f"brain:{subject}")] for kind in reads}
    if len(reads) > 1:
        tasks["image+text"] = [Task(("image", "text"), f"brain:{subject}")]
    if drafts.pictured:
        tasks[PICTURE] = [Task((f"brain:{subject}",), "image")]
    return {kind: [task for task in some if len(codes.stimuli_of(task))] for kind, some in tasks.items()}


def parts_of(size: int, at_once: int) -> list[slice]:
    """The rows of a batch, so many at a time."""
    return [slice(start, start + at_once) for start in range(0, size, at_once)]


def drawable(codes: Codes, task: Task) -> bool:
    """Whether there are stimuli for a task; that there are none between two brains is said, and the task left out."""
    if len(codes.stimuli_of(task)):
        return True
    print(f"{task}: left out, as no training stimulus was shown to all of these brains", file=sys.stderr)
    return False


def fit_omni(
    model: OmniModel,
    tokenizers: Tokenizers,
    codes: Codes,
    config: OmniTrainingConfig,
    folder: Path,
    seed: int,
    *,
    validation: Codes | None = None,
    hardware: Hardware = CPU,
    show: Callable[[nn.Module, int], object] | None = None,
    sinks: Sequence[Sink] = (),
) -> OmniModel:
    """Train on one tokenized split.

    validation: held-out stimuli, on which losses are measured. show: draws samples. sinks: where the log goes besides.
    """
    device = own_device(hardware.device)
    tasks = drawable_tasks(codes, config.tasks)
    names, weights = list(tasks), torch.tensor(list(tasks.values()))
    later = weights
    if config.tasks_at_end is not None:
        at_end = drawable_tasks(codes, config.tasks_at_end)
        names = list(dict.fromkeys([*tasks, *at_end]))
        weights, later = (torch.tensor([some.get(name, 0.0) for name in names]) for some in (tasks, at_end))
        weights, later = weights / weights.sum(), later / later.sum()
    for tokenizer in (tokenizers.brain, tokenizers.image):
        if tokenizer is not None:
            tokenizer.eval().requires_grad_(False)
    on_device = tokenizers.on(device)
    size, end, width = config.optim.batch_size, model.interface.text_end, config.optim.steps

    def draw_rows(step: int, generator: torch.Generator, rows: slice) -> Drawn:
        now = torch.lerp(weights, later, step / width)
        task = names[int(torch.multinomial(now, 1, generator=generator))]
        return draw(codes, task, generator, config, model.config, size, rows)

    def losses(call: Callable[..., Tensor], drawn: Drawn, generator: torch.Generator, counts: Tensor) -> dict:
        if model.config.decoder.dropout:  # which draws from torch's own generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return step_losses(call, on_device, drawn, counts, config, end)

    held = model.embed_tokens.weight.dtype
    prepare(model, config.trained, config.lora, autocast_dtype(config.optim.precision, device), seed)
    if config.recompute:
        recompute(model.decoder.layers)
    steps = Steps(
        draw_rows,
        losses,
        counts=lambda drawn: counts_of(drawn, end),
        task=lambda drawn: str(drawn.task),
        work=lambda drawn: work_of(model, drawn),
    )
    validate = None
    if validation is not None:
        held_out = Validation(
            validation, {n: float(w) for n, w in zip(names, later, strict=True)}, config, model.config,
            hardware.most_at_once(size),
        )  # fmt: skip
        validate = partial(held_out.losses, tokenizers=on_device, config=config, text_end=end, device=device)
    watch = Watch(validate, config.validate_every, config.patience, show, config.sample_every, sinks)
    trained = fit(
        model, steps, config.optim, stage="omni", folder=folder, seed=seed, hardware=hardware, watch=watch,
        settings={"sample_every": config.sample_every},
    )  # fmt: skip
    assert isinstance(trained, OmniModel)
    if config.trained == "lora" and is_first():
        save_lora(trained.decoder, config.lora, folder / "lora.safetensors")
    keep(trained.decoder.layers)
    release(trained, held)
    return trained


def drawable_tasks(codes: Codes, tasks: Mapping[str, float]) -> dict[Task, float]:
    """One task per subject out of each direction that there are stimuli for."""
    available = {n for n, c in (("image", codes.picture_codes), ("text", codes.caption_codes)) if c is not None}
    expanded = expand_tasks(tasks, tuple(codes.brains), available)
    return {task: weight for task, weight in expanded.items() if drawable(codes, task)}


def work_of(model: OmniModel, drawn: Drawn) -> Work:
    """What a part of a step costs."""
    target = drawn.batch.target
    positions = target.batch * total_length(drawn.batch.conditions, target.length)
    return Work(positions, step_flops(model, drawn.batch.conditions, target))


class Validation:
    """Losses of held-out stimuli: the same rows each time, some of each direction, nothing dropped.

    tasks: what is measured, each with its weight in "loss". at_once: rows that are computed at a time: no more than a
    training step takes, for which there is room; 0: all of a task.
    """

    def __init__(
        self,
        codes: Codes,
        tasks: Mapping[Task, float],
        config: OmniTrainingConfig,
        model: OmniConfig,
        at_once: int = 0,
    ):
        self.drawn: list[tuple[float, list[Drawn]]] = []
        plain = replace(config, dropped=0.0, blurred=0.0, excerpts=0.0)
        some = {task: weight for task, weight in tasks.items() if weight > 0 and len(codes.stimuli_of(task))}
        share = Counter(task.direction for task in some)
        for number, (task, weight) in enumerate(some.items()):
            size = max(2, -(-VALIDATION_ROWS // share[task.direction]))
            parts = [
                draw(codes, task, generator_of(VALIDATION_SEED, number), plain, model, size, rows)
                for rows in parts_of(size, at_once or size)
            ]
            self.drawn.append((weight / sum(some.values()), parts))

    def losses(
        self, model: Callable[..., Tensor], tokenizers: Tokenizers, config: OmniTrainingConfig, text_end: int,
        device: torch.device,
    ) -> dict[str, float]:  # fmt: skip
        """ "loss", weighted as tasks are at the end of training, and the parts of each direction."""
        sums: dict[str, list[float]] = {}
        total = 0.0
        for weight, parts in self.drawn:
            counts = torch.stack([counts_of(drawn, text_end) for drawn in parts]).sum(dim=0).to(device)
            found: dict[str, float] = {}
            for drawn in parts:
                losses = step_losses(model, tokenizers, moved(drawn, device), counts, config, text_end)
                for name, value in losses.items():
                    found[name] = found.get(name, 0.0) + float(value)
            total += weight * found["loss"]
            for name in found.keys() - {"loss"}:
                sums.setdefault(name, []).append(found[name])
        return {"loss": total} | {name: sum(values) / len(values) for name, values in sorted(sums.items())}
