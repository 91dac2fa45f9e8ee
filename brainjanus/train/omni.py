"""Training of the unified model on all of its tasks.

A step draws a task and a batch for it. Half of the rows are predicted code by code, each seeing the codes before it
(the likelihood that samples are drawn from); in the other half all codes of the target are hidden, each code is
predicted on its own, and beside the likelihood the decoded expectation is pulled to the response that was measured:
hard codes of noisy responses are noisy labels, so the expectation is trained, not only the likelihood.
Source: BrainJanus (arXiv 2606.30319) for the tasks; Ho & Salimans 2022 for dropped conditions (guidance).
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from brainjanus.core.errors import UserError
from brainjanus.model.checkpoint import Tokenizers
from brainjanus.model.draft import Drafts
from brainjanus.model.lora import LoraConfig, save_lora
from brainjanus.model.omni import OmniModel
from brainjanus.model.sequence import Task, subject_of
from brainjanus.tokenizers.text import END, up_to_end
from brainjanus.train.codes import Batch, Codes
from brainjanus.train.fit import fit
from brainjanus.train.optim import OptimConfig, autocast_dtype
from brainjanus.train.state import generator_of
from brainjanus.train.trained import Trained, keep, prepare, recompute, release


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
    dropped: share of rows whose conditions are withheld. hidden: share of rows whose target is hidden (brains and
    pictures). expectation: weight of the squared error of their decoded expectation.
    """

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=2600, batch_size=64, learning_rate=4e-3))
    trained: Trained = "full"
    lora: LoraConfig = field(default_factory=LoraConfig)
    recompute: bool = False
    tasks: Mapping[str, float] = field(default_factory=default_tasks)
    dropped: float = 0.1
    hidden: float = 0.5
    expectation: Mapping[str, float] = field(default_factory=lambda: {"brain": 2.0, "image": 20.0})

    def __post_init__(self) -> None:
        problems = [
            f"{n} must lie in [0, 1], got {getattr(self, n)}"
            for n in ("dropped", "hidden")
            if not 0 <= getattr(self, n) <= 1
        ]
        problems += [
            f"task '{task}' must have the form condition->target" for task in self.tasks if task.count("->") != 1
        ]
        problems += [
            f"task '{task}' must have a weight of at least 0" for task, weight in self.tasks.items() if weight < 0
        ]
        if problems:
            raise UserError("omni training config: " + "; ".join(problems) + ". Correct the config.")


class Losses(NamedTuple):
    total: Float[Tensor, ""]
    likelihood: Float[Tensor, ""]  # nats per code
    expectation: Float[Tensor, ""] | None  # mean squared error of the decoded expectation; brain units or pixels


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
    if not expanded:
        raise UserError(
            f"tasks: expected at least one of {', '.join(tasks)} that the data has the modalities for, got data with "
            f"brain, {', '.join(sorted(available)) or 'nothing else'}. Add captions or pictures to the dataset."
        )
    return expanded


def named_tasks(names: Sequence[str], subjects: Sequence[str]) -> Iterator[Task]:
    """The tasks that a direction stands for: `brain` is each subject, `part` a part of the target's (or of each) brain;
    from `brain` to `brain` are all pairs of different subjects."""
    between = "brain" in names[:-1] and names[-1] == "brain"
    for subject in subjects if {"brain", "part"} & set(names) else ("",):
        for other in [s for s in subjects if s != subject] if between else [subject]:
            given = [f"brain:{other}" if n == "brain" else f"part:{subject}" if n == "part" else n for n in names[:-1]]
            yield Task(tuple(given), f"brain:{subject}" if names[-1] == "brain" else names[-1])


def step_losses(
    model: OmniModel, tokenizers: Tokenizers, batch: Batch, generator: torch.Generator, config: OmniTrainingConfig
) -> Losses:
    """Likelihood and expectation of one batch, with conditions and targets withheld at random."""
    conditions, target, continuous, _, beyond, judged = batch
    rows, modality = target.batch, target.modality
    dropped = torch.rand(rows, generator=generator) < config.dropped
    conditions = [replace(block, dropped=dropped) for block in conditions]
    share = 0.0 if modality == "text" else config.hidden
    hidden = torch.arange(rows) < round(share * rows)
    logits = model(conditions, target, hidden[:, None].expand(-1, target.length)).float()
    assert target.codes is not None
    nats = F.cross_entropy(logits.transpose(1, 2), target.codes, reduction="none")
    seen = target_mask(target.codes, model.interface.text_end) if modality == "text" else torch.ones_like(nats)
    likelihood = (nats * seen).sum() / seen.sum()
    if not hidden.any() or config.expectation.get(modality, 0) == 0:
        return Losses(likelihood, likelihood, None)
    assert continuous is not None
    probabilities = logits[hidden].softmax(dim=-1)
    if target.subject is not None:
        expected = tokenizers.brain.decode_probabilities(probabilities, target.subject)
        if beyond is not None:  # of a row without conditions there is no draft
            expected = expected + beyond[hidden] * ~dropped[hidden, None]
    else:
        assert tokenizers.image is not None
        expected = tokenizers.image.decode_vectors(probabilities @ tokenizers.image.quantizer.codebook)
    squared = (expected.float() - continuous[hidden]).square()
    error = squared.mean() if judged is None else squared[judged[hidden]].mean()
    return Losses(likelihood + config.expectation[modality] * error, likelihood, error)


def target_mask(codes: Int[Tensor, "b l"], end: int = END) -> Float[Tensor, "b l"]:
    """1 up to and with the first end of each text, 0 behind it."""
    return up_to_end(codes, end).float()


@torch.no_grad()
def weigh_drafts(
    model: OmniModel, tokenizers: Tokenizers, codes: Codes, drafts: Drafts, seed: int, batches: int = 6, size: int = 128
) -> None:
    """Solve for how much of what the model adds to its drafts is to be believed: least squares on training rows, whose
    drafts are out of fold. Into `drafts`."""
    for subject in codes.brains:
        others = [other for other, target in drafts.pairs if target == subject]
        tasks = {"part": [Task((f"part:{subject}",), f"brain:{subject}")]}
        tasks["brain"] = [Task((f"brain:{other}",), f"brain:{subject}") for other in others]
        for kind, some in tasks.items():
            some = [task for task in some if len(codes.stimuli_of(task))]
            products = torch.zeros(2, dtype=torch.float64)
            for number in range(batches if some else 0):
                generator = generator_of(seed, number)
                batch = codes.batch(some[number % len(some)], size, generator, model.config)
                assert batch.draft is not None and batch.beyond is not None and batch.continuous is not None
                hidden = torch.ones_like(batch.target.content, dtype=torch.bool)
                p = model(batch.conditions, batch.target, hidden).float().softmax(dim=-1)
                added = tokenizers.brain.decode_probabilities(p, subject) + batch.beyond - batch.draft
                missing = batch.continuous - batch.draft
                judged = torch.ones_like(missing, dtype=torch.bool) if batch.judged is None else batch.judged
                products += torch.stack([(added * missing)[judged].sum(), added[judged].square().sum()]).double()
            if products[1] > 0:
                getattr(drafts.trust(subject), kind).fill_((products[0] / products[1]).clamp(0, 1))


def drawable(codes: Codes, task: Task) -> bool:
    """Whether there are stimuli for a task; that there are none between two brains is said, and the task left out."""
    if len(codes.stimuli_of(task)):
        return True
    print(f"{task}: left out, as no training stimulus was shown to all of these brains", file=sys.stderr)
    return False


def fit_omni(
    model: OmniModel, tokenizers: Tokenizers, codes: Codes, config: OmniTrainingConfig, folder: Path, seed: int
) -> OmniModel:
    """Train on one tokenized split."""
    available = {n for n, c in (("image", codes.picture_codes), ("text", codes.caption_codes)) if c is not None}
    tasks = expand_tasks(config.tasks, tuple(codes.brains), available)
    tasks = {task: weight for task, weight in tasks.items() if drawable(codes, task)}
    names, weights = list(tasks), torch.tensor(list(tasks.values()))
    for tokenizer in (tokenizers.brain, tokenizers.image):
        if tokenizer is not None:
            tokenizer.eval().requires_grad_(False)

    def losses_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        task = names[int(torch.multinomial(weights, 1, generator=generator))]
        with torch.autocast(device.type, enabled=False):  # drafts are solved and made in float32
            batch = codes.batch(task, config.optim.batch_size, generator, model.config)
        losses = step_losses(model, tokenizers, batch, generator, config)
        named = {"loss": losses.total, f"nats/{task.direction}": losses.likelihood}
        if losses.expectation is not None:
            named[f"mse/{task.direction}"] = losses.expectation
        return named

    device, held = model.embed_tokens.weight.device, model.embed_tokens.weight.dtype
    prepare(model, config.trained, config.lora, autocast_dtype(config.optim.precision, device), seed)
    if config.recompute:
        recompute(model.decoder.layers)
    fit(model, losses_of, config.optim, stage="omni", folder=folder, seed=seed)
    if config.trained == "lora":
        save_lora(model.decoder, config.lora, folder / "lora.safetensors")
    keep(model.decoder.layers)
    release(model, held)
    return model
