"""Memory: what a request or a training step holds at its peak, known before a single weight is there.

Configs enter; bytes leave, by what they are for. The model is made of tensors that have a shape, a dtype and no content
(torch's fake tensors), and one request or one training step of the package's own code runs on them, while all that is
alive is summed up. So nothing is guessed, and a change of the code changes the figures. What torch itself needs beside
tensors (a CUDA context, fragments between tensors) is left to `RESERVE`.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brainjanus.core.errors import UserError
from brainjanus.core.fused import nats
from brainjanus.core.vocabulary import Modality, Vocabulary
from brainjanus.generate import GenerationConfig, sample
from brainjanus.model.checkpoint import JANUS
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.lora import LoraConfig, is_lora
from brainjanus.model.omni import Interface, OmniConfig, OmniModel
from brainjanus.model.sequence import Block, modality_of, subject_of, total_length
from brainjanus.recipes import RunConfig
from brainjanus.tokenizers.janus import JanusImageConfig, JanusImageTokenizer, JanusVision, JanusVisionConfig
from brainjanus.train.muon import Muon
from brainjanus.train.optim import OptimConfig, optimizers_of
from brainjanus.train.trained import Trained, adapt, is_brain, is_frozen_matrix, recompute

GB = 10**9
CARDS = {"24 GB": 24, "40 GB": 40, "48 GB": 48, "80 GB": 80, "141 GB": 141}  # sold by these names; GB as here
JANUS_PIECES = 102_400  # rows of its embedding
RESERVE = 1.08, 1 * GB  # a card holds a peak if this many times it, and so many bytes more, fit


class Peak(NamedTuple):
    """Bytes alive at the moment when most are."""

    weights: dict[str, int]  # by part of the model
    gradients: int
    moments: int  # of the optimizers
    cache: int  # keys and values
    working: int  # all else: what the backward pass needs, logits, buffers

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.gradients + self.moments + self.cache + self.working

    @property
    def cards(self) -> list[str]:
        """Those that hold it."""
        return [name for name, size in CARDS.items() if self.total * RESERVE[0] + RESERVE[1] <= size * GB]


@dataclass(frozen=True)
class Request:
    """conditions, target: names, as for `generate`. rows: of the conditions. samples: of each row. guided: with
    guidance. precision: what weights and cache are held in.
    """

    conditions: tuple[str, ...]
    target: str
    rows: int = 1
    samples: int = 1
    guided: bool = False
    precision: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class Step:
    """A training step of the longest task. precision: what is computed in; trained weights are float32. rows_at_once:
    see `train.parallel.Hardware`.
    """

    conditions: tuple[str, ...]
    target: str
    batch_size: int = 32
    trained: Trained = "full"
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    recompute: bool = False
    precision: torch.dtype = torch.bfloat16
    rows_at_once: int = 0


class Enough(Exception):
    """The steps that come now need what those before them needed."""


def request_peak(config: OmniConfig, interface: Interface, request: Request, networks: int = 0) -> Peak:
    """Of one request: its conditions, and draws of the target's first codes beside a cache for all of them.

    networks: bytes of what stands beside the model: encoders and decoders of pictures.
    """
    with without_content() as live:
        model = OmniModel(config, readable(interface)).requires_grad_(False).eval()
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.startswith(("decoder.", "heads.", "embed_tokens.")):  # as OmniModel.prepare does
                value.data = value.data.to(request.precision)
        live.restart()
        model.step = stopping(model.step, after=3)  # type: ignore[method-assign]
        conditions = [content(interface, config, name, request.rows) for name in request.conditions]
        goal = target_codes(interface, request.target, request.rows)
        drawn = GenerationConfig("sample", top_p=0.9, guidance=2.0 if request.guided else 1.0)
        try:
            with torch.no_grad():
                sample(model, conditions, goal, drawn, torch.empty(request.rows, request.samples, goal.length))
        except (Enough, DataDependentOutputException):  # of texts it is asked after each code whether all have ended
            pass
    parts = weights_of(model)
    rest = live.peak - sum(parts.values())
    parts |= {"networks": networks} if networks else {}
    cache = min(rest, cache_of(config.decoder, request, total_length(conditions, 0), goal.length))
    return Peak(parts, 0, 0, cache, rest - cache)


def cache_of(config: DecoderConfig, request: Request, prefix: int, target: int) -> int:
    """Keys and values of the prefix, computed once, and of the whole sequence of each sample."""
    heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    rows = request.rows * (2 if request.guided else 1)
    positions = rows * (request.samples * (prefix + target) + (prefix if request.samples > 1 else 0))
    return 2 * config.num_hidden_layers * heads * positions * request.precision.itemsize


def stopping(step: Callable, after: int) -> Callable:
    """A step that raises Enough when it is called once more than `after` times."""
    calls = iter(range(after))

    def limited(*args: Any, **kwargs: Any) -> Tensor:
        if next(calls, None) is None:
            raise Enough
        return step(*args, **kwargs)

    return limited


def step_peak(config: OmniConfig, interface: Interface, step: Step) -> Peak:
    """Of a training step that is not the first, so that the moments are there."""
    with without_content() as live:
        model = OmniModel(config, readable(interface))
        adapt(model, step.trained, step.lora)
        for name, parameter in model.named_parameters():
            if is_frozen_matrix(name, parameter):
                parameter.data = parameter.data.to(step.precision)
        if step.recompute:
            recompute(model.decoder.layers)
        live.restart()
        trained = [p for p in model.parameters() if p.requires_grad]
        moments = moments_of(model, step.optim)
        held = [torch.empty(moments, dtype=torch.uint8)]
        rows = min(step.rows_at_once or step.batch_size, step.batch_size)
        conditions = [content(interface, config, name, rows) for name in step.conditions]
        goal = target_codes(interface, step.target, rows)
        for _ in range(1 if rows == step.batch_size else 2):  # the second part finds the gradients of the first
            with torch.autocast("cpu", step.precision, enabled=step.precision != torch.float32):
                loss = loss_of(model, conditions, goal)
            loss.backward()
            del loss
        del held
    parts = weights_of(model)
    gradients = sum(size_of(p.grad) for p in trained if p.grad is not None)
    return Peak(parts, gradients, moments, 0, live.peak - sum(parts.values()) - gradients - moments)


def loss_of(model: OmniModel, conditions: Sequence[Block], goal: Block) -> Tensor:
    """As `train.omni.step_losses` computes it; half of the rows are hidden, as they are there by default."""
    conditions = [replace(block, dropped=torch.zeros(block.batch, dtype=torch.bool)) for block in conditions]
    hidden = torch.zeros(goal.batch, goal.length, dtype=torch.bool)
    logits = model(conditions, goal, hidden).float()
    assert goal.codes is not None
    loss = nats(logits, goal.codes).mean()
    if goal.modality == "brain":
        expected = logits[: goal.batch // 2].softmax(dim=-1) @ model.brain_codebook
        loss = loss + expected.float().square().mean()
    return loss


def moments_of(model: nn.Module, config: OptimConfig) -> int:
    """Two for each number that AdamW trains, one for each that Muon does."""
    return sum(
        size_of(parameter) * (1 if isinstance(optimizer, Muon) else 2)
        for optimizer in optimizers_of(model, config)
        for group in optimizer.param_groups
        for parameter in group["params"]
    )


def weights_of(model: OmniModel) -> dict[str, int]:
    """Bytes of parameters and buffers, by what they serve."""
    parts = dict.fromkeys(("decoder", "text", "image", "brain", "lora"), 0)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        parts[part_of(name)] += size_of(value)
    return {name: size for name, size in parts.items() if size}


def part_of(name: str) -> str:
    if is_lora(name):
        return "lora"
    if name.startswith("decoder."):
        return "decoder"
    if is_brain(name) or name.startswith("brain"):
        return "brain"
    return "text" if name.startswith(("embed_tokens", "heads.text")) else "image"


# --- Janus-Pro on NSD


@dataclass(frozen=True)
class Study:
    """What a recipe does not say; defaults are those of NSD. subjects: how many brains. sites: of each of them.
    text_codes: the longest text."""

    subjects: int = 8
    sites: int = 15_724  # of a subject
    text_codes: int = 64

    def __post_init__(self) -> None:
        if wrong := [f"{name} {value}" for name, value in vars(self).items() if value < 1]:
            raise UserError(f"study: expected subjects, sites and text_codes of at least 1, got {', '.join(wrong)}.")


def janus_model(recipe: RunConfig, study: Study) -> tuple[OmniConfig, Interface]:
    """What the recipe makes of a folder of Janus-Pro, without the folder.

    Raises UserError if conditions are read as features whose size the folder does not decide.
    """
    for name, encoder in (("text", recipe.omni.text_input), ("image", recipe.omni.image_input)):
        known = ("codes", JANUS) if name == "image" else ("codes",)
        if encoder not in known:
            raise UserError(
                f"memory: expected omni.{name}_input {' or '.join(known)}, got '{encoder}'. How many features others "
                "give is known with their weights only: take one of these."
            )
    image, vision, brain = JanusImageConfig(), JanusVisionConfig(), recipe.brain_tokenizer
    subjects = tuple(f"subj{number:02}" for number in range(1, study.subjects + 1))
    codes = -(-study.sites // brain.patch_size) * brain.quantizer.stages
    tokens = recipe.janus_tokens or (vision.image_size // vision.patch_size) ** 2
    interface = Interface(
        vocabulary=Vocabulary(JANUS_PIECES, image.num_embeddings, brain.quantizer.num_entries, subjects),
        image_codes=image.codes_per_side**2,
        brain_codes=dict.fromkeys(subjects, codes),
        image_dim=image.embed_dim,
        brain_dim=brain.quantizer.dim,
        text_codes=study.text_codes,
        brain_patch=brain.patch_size,
        brain_stages=brain.quantizer.stages,
        features={JANUS: (tokens, vision.hidden_size)},
    )
    return recipe.omni, interface


def janus_networks(rows: int, precision: torch.dtype) -> tuple[int, int]:
    """Bytes of Janus's picture decoder (float32) and understanding encoder, and the peak of decoding `rows` pictures.

    Raises UserError if `transformers` is not installed.
    """
    with torch.device("meta"):
        image, vision = JanusImageTokenizer(JanusImageConfig()), JanusVision(JanusVisionConfig())
    weights = bytes_of(image) + sum(p.numel() for p in vision.parameters()) * precision.itemsize
    with Live() as live, torch.no_grad():
        image.decode(torch.empty(rows, image.num_codes, dtype=torch.long, device="meta"))
    return weights, live.peak


class Row(NamedTuple):
    """One line of the table."""

    what: str
    peak: Peak


def janus_table(recipe: RunConfig, study: Study, samples: int = 16, rows_at_once: int = 0) -> list[Row]:
    """What Janus-Pro needs on NSD: requests in bfloat16, some for `samples`, and all ways to train it."""
    return [Row(what, need()) for what, need in janus_needs(recipe, study, samples, rows_at_once).items()]


def janus_needs(
    recipe: RunConfig, study: Study, samples: int = 16, rows_at_once: int = 0
) -> dict[str, Callable[[], Peak]]:
    """The lines of `janus_table`, each computed when it is called. A step is one of the task that needs most."""
    if samples < 1:
        raise UserError(f"--samples: expected at least 1, got {samples}. Correct it.")
    if rows_at_once < 0:
        raise UserError(f"--rows-at-once: expected at least 0, got {rows_at_once}. Correct it.")
    config, interface = janus_model(recipe, study)
    training, brain = recipe.training, "brain:subj01"
    requests = {
        "brain -> text": Request((brain,), "text"),
        "brain -> image, guided": Request((brain,), "image", guided=True),
        f"brain -> image, guided, {samples} samples": Request((brain,), "image", samples=samples, guided=True),
        f"image -> brain, {samples} samples": Request(("image",), brain, samples=samples),
    }
    batch = training.optim.batch_size
    told = f"batch {batch}" + (f", {rows_at_once} rows at once" if 0 < rows_at_once < batch else "")
    ways = [(trained, again) for trained in get_args(Trained) for again in (False, True)]
    steps = {
        f"train {trained}, {told}{', recomputed' if again else ''}": Step(
            (brain,), "image", batch, trained, training.lora, training.optim, again, rows_at_once=rows_at_once
        )
        for trained, again in ways
    }
    needs: dict[str, Callable[[], Peak]] = {
        what: partial(janus_request, config, interface, request) for what, request in requests.items()
    }
    return needs | {what: partial(step_peak, config, interface, step) for what, step in steps.items()}


def janus_request(config: OmniConfig, interface: Interface, request: Request) -> Peak:
    """With Janus's networks of pictures beside the model; the cache is given back before a picture is decoded."""
    networks, decoding = janus_networks(request.rows * request.samples, request.precision)
    peak = request_peak(config, interface, request, networks)
    if request.target != "image":
        return peak
    return max(peak, Peak(peak.weights, 0, 0, 0, decoding), key=lambda one: one.total)


# --- blocks without content


class Unread(Vocabulary):
    """A vocabulary that does not look whether codes are in their range: there is nothing to look at."""

    def to_tokens(self, codes: Int[Tensor, "*b"], modality: Modality) -> Int[Tensor, "*b"]:
        return codes + self.range(modality).start


def readable(interface: Interface) -> Interface:
    v = interface.vocabulary
    return replace(interface, vocabulary=Unread(v.text, v.image, v.brain, v.subjects))


def content(interface: Interface, config: OmniConfig, name: str, rows: int) -> Block:
    """A condition as it enters the model."""
    modality, subject = modality_of(name), subject_of(name)
    if modality == "brain":
        assert subject is not None
        length = interface.brain_codes[subject]
        if config.brain_input == "codes":
            return Block("brain", codes=torch.empty(rows, length, dtype=torch.long), subject=subject)
        patches, dim = length // interface.brain_stages, interface.brain_dim
        if config.brain_input == "sites":
            patches, dim = -(-patches // config.brain_fold), config.brain_fold * interface.brain_patch
        return Block("brain", vectors=torch.empty(rows, patches, dim), subject=subject)
    encoder = config.text_input if modality == "text" else config.image_input
    if encoder == "codes":
        return target_codes(interface, name, rows)
    return Block(modality, vectors=torch.empty(rows, *interface.features[encoder]), features=encoder)


def target_codes(interface: Interface, name: str, rows: int) -> Block:
    modality, subject = modality_of(name), subject_of(name)
    lengths: Mapping[str, int] = {"text": interface.text_codes, "image": interface.image_codes}
    length = interface.brain_codes[subject] if subject is not None else lengths[modality]
    return Block(modality, codes=torch.empty(rows, length, dtype=torch.long), subject=subject)


# --- what is alive


class Live(TorchDispatchMode):
    """Bytes of all storages that came out of an operation and are alive, and the most there have been."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.see(value.untyped_storage())
        return out

    def see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key, size)

    def restart(self) -> None:
        """What has been alive until here is no part of it."""
        self.peak = self.now

    def forget(self, key: int, size: int) -> None:
        self.alive.remove(key)
        self.now -= size


@contextmanager
def without_content() -> Iterator[Live]:
    """Tensors that are made inside have no content and take no memory; what they would take is counted."""
    with FakeTensorMode(), Live() as live:
        yield live


def bytes_of(module: nn.Module) -> int:
    return sum(size_of(value) for value in [*module.parameters(), *module.buffers()])


def size_of(value: Tensor) -> int:
    return value.numel() * value.element_size()


def measured_peak(run: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator gave out while `run` ran, buffers inside of its kernels included."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    given = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(given, key=lambda event: event.start_ns())))
