"""Generation: conditions in, captions, pictures or brain responses out, in any direction.

The conditions are computed once and shared by all samples of a request; guided and unguided rows run as one batch.
Two estimates: "sample" draws a plausible trial, code by code; "mean" gives the expected response or picture by
decoding averaged *probabilities* of codes, not by averaging decoded samples. With num_samples=0 these probabilities
come from a single pass with all codes of the target hidden; with more they are averaged over so many samples.
Source: Ho & Salimans 2022 (guidance); Holtzman et al. 2020 (top-p).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from brainjanus.core.errors import UserError
from brainjanus.core.progress import progress
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.omni import OmniModel
from brainjanus.model.sequence import Block, modality_of, total_length
from brainjanus.model.steps import Steps
from brainjanus.tokenizers.text import END
from brainjanus.tokenizers.vision import vision_encoder

ROWS_AT_ONCE = 256  # sequences in one batch, samples and guidance counted


@dataclass(frozen=True)
class GenerationConfig:
    """estimate: "sample" or "mean" (brains and pictures). num_samples: samples that a mean is averaged over; 0 is one
    pass without samples. temperature: 0 takes the likeliest code. top_k: 0 keeps all codes. top_p: 1 keeps all.
    guidance: 1 is none; above 1 what the conditions say is exaggerated. seed: same seed, same samples.
    """

    estimate: Literal["sample", "mean"] = "mean"
    num_samples: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.estimate not in ("sample", "mean"):
            problems.append(f"estimate must be sample or mean, got '{self.estimate}'")
        if self.num_samples < 0 or self.top_k < 0:
            problems.append(f"num_samples and top_k must be at least 0, got {self.num_samples} and {self.top_k}")
        if self.temperature < 0 or self.guidance < 0:
            problems.append(f"temperature and guidance must be at least 0, got {self.temperature} and {self.guidance}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must lie in (0, 1], got {self.top_p}")
        if problems:
            raise UserError("generation: " + "; ".join(problems) + ". Correct these options.")


# B rows, S samples, K codes of the target, N codebook entries, V sites
@torch.no_grad()
def generate(
    checkpoint: Checkpoint, conditions: Mapping[str, object], target: str, config: GenerationConfig | None = None
) -> Tensor | list[str]:
    """One output per row of the conditions.

    conditions: name -> rows; "image": pictures [b, h, w, 3], uint8 or floats in [0, 1], or vision features float
    [b, t, c]; "text": captions, or text features float [b, t, c]; "brain:SUBJECT": z-scored responses [b, v].
    Returns captions for target "text", pictures float [b, h, w, 3] in [0, 1] for "image", z-scored responses [b, v]
    for "brain:SUBJECT". Text is always sampled (temperature 0 is greedy), whatever the estimate.
    Raises UserError if a condition does not fit the model.
    """
    config = config or GenerationConfig()
    blocks = [condition_block(checkpoint, name, rows) for name, rows in conditions.items()]
    empty = target_block(checkpoint, target, blocks[0].batch if blocks else 1)
    if target in conditions:
        raise UserError(
            f"generation: expected a target that is not among the conditions, got '{target}'. "
            "Leave it out of the conditions, or choose another target."
        )
    check_paired(dict(zip(conditions, blocks, strict=True)))
    mean = config.estimate == "mean" and empty.modality != "text"
    samples = max(1, config.num_samples) if mean else 1
    rows_at_once = max(1, ROWS_AT_ONCE // (samples * (1 if config.guidance == 1 else 2)))
    uniform = torch.rand(empty.batch, samples, empty.length, generator=torch.Generator().manual_seed(config.seed))
    outputs: list[Tensor] = []
    with progress(f"{'+'.join(conditions) or 'nothing'}->{target}", empty.batch) as advance:
        for start in range(0, empty.batch, rows_at_once):
            rows = slice(start, start + rows_at_once)
            part, goal = [rows_of(block, rows) for block in blocks], rows_of(empty, rows)
            if mean and config.num_samples == 0:
                probabilities = marginal(checkpoint.model, part, goal, config.guidance)
            else:
                codes, averages = sample(checkpoint.model, part, goal, config, uniform[rows], averaged=mean)
                probabilities = codes if averages is None else averages
            if mean:
                outputs.append(decode_probabilities(checkpoint, probabilities, goal))
            else:
                outputs.append(codes[:, 0] if goal.modality == "text" else decode_codes(checkpoint, codes[:, 0], goal))
            advance(min(start + rows_at_once, empty.batch), None)
    if empty.modality == "text":
        assert checkpoint.tokenizers.text is not None
        return checkpoint.tokenizers.text.decode(torch.cat(outputs))
    return torch.cat(outputs)


def marginal(
    model: OmniModel, conditions: Sequence[Block], target: Block, guidance: float = 1.0
) -> Float[Tensor, "b k n"]:
    """p(code k | conditions) for each k by itself, in one pass with all codes of the target hidden."""
    hidden = torch.ones(target.content.shape[:2], dtype=torch.bool)
    logits = model(conditions, target, hidden).float()
    if guidance != 1:
        without = model([block.withheld() for block in conditions], target, hidden).float()
        logits = without + guidance * (logits - without)
    return logits.softmax(dim=-1)


class Sampled(NamedTuple):
    """Codes drawn one after the other, and the probabilities they were drawn from, averaged over samples, if wanted."""

    codes: Int[Tensor, "b s k"]
    probabilities: Float[Tensor, "b k n"] | None


def sample(
    model: OmniModel,
    conditions: Sequence[Block],
    target: Block,
    config: GenerationConfig,
    uniform: Float[Tensor, "b s k"],
    *,
    averaged: bool = False,
) -> Sampled:
    """Samples of the target of each row. averaged: whether their probabilities are wanted, too.

    uniform: numbers in [0, 1) that decide each draw, so that a row's samples do not depend on its neighbours.
    """
    rows, samples, length = uniform.shape
    guided = config.guidance != 1
    if guided:
        conditions = [stack(block, block.withheld()) for block in conditions]
    many = rows * (2 if guided else 1)
    room = total_length(conditions, length)
    prefix = model.start(conditions, many, room if samples == 1 else total_length(conditions, 0))
    steps = Steps(model, prefix.repeat(samples, room), target)
    device = prefix.tensors.device
    draws = uniform.flatten(0, 1).to(device)
    codes = torch.full((rows * samples, length), model.interface.text_end, device=device)
    means = torch.zeros(rows, length, target_size(model, target), device=device) if averaged else None
    ended = torch.zeros(rows * samples, dtype=torch.bool, device=device)
    previous = None
    for position in range(length):
        logits = steps(position, previous).float()
        if guided:
            given, without = logits.chunk(2)
            logits = without + config.guidance * (given - without)
        if means is not None:
            means[:, position] = logits.softmax(dim=-1).unflatten(0, (rows, samples)).mean(dim=1)
        chosen = draw(logits, draws[:, position], config)
        if target.modality == "text":
            chosen = chosen.masked_fill(ended, model.interface.text_end)
            ended |= chosen == model.interface.text_end
        codes[:, position] = chosen
        if target.modality == "text" and bool(ended.all()):
            break
        previous = chosen.repeat(2) if guided else chosen
    return Sampled(codes.unflatten(0, (rows, samples)), means)


def draw(logits: Float[Tensor, "r n"], uniform: Float[Tensor, "r"], config: GenerationConfig) -> Int[Tensor, "r"]:
    """One code per row, by temperature, top-k and top-p; `uniform` decides which."""
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    logits, order = logits / config.temperature, None
    if config.top_k:
        logits, order = logits.topk(min(config.top_k, logits.shape[-1]))
    elif config.top_p < 1:
        logits, order = logits.sort(dim=-1, descending=True)
    probabilities = logits.softmax(dim=-1)
    if config.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= config.top_p, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    whole = cumulative[:, -1:]
    below = torch.minimum(uniform[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    place = torch.searchsorted(cumulative, below, right=True)  # the first that exceeds it, so that its own p is not 0
    return (place if order is None else order.gather(1, place))[:, 0]


@torch.no_grad()
def score(checkpoint: Checkpoint, conditions: Mapping[str, object], target: str, rows: object) -> Float[Tensor, "b"]:
    """log p(target | conditions) of each row, in nats, summed over its codes (of text: up to and with its end).

    conditions: as for `generate`. rows: what is scored: pictures, captions or responses, but no features.
    Raises UserError if a condition or the target does not fit the model.
    """
    if target in conditions:
        raise UserError(
            f"score: expected a target that is not among the conditions, got '{target}'. "
            "Leave it out of the conditions, or choose another target."
        )
    blocks = [condition_block(checkpoint, name, values) for name, values in conditions.items()]
    goal = condition_block(checkpoint, target, rows, as_codes=True)
    check_paired(dict(zip([*conditions, target], [*blocks, goal], strict=True)))
    assert goal.codes is not None
    nats = []
    for start in range(0, goal.batch, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        logits = checkpoint.model([rows_of(block, part) for block in blocks], rows_of(goal, part)).float()
        codes = goal.codes[part]
        log_p = -F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
        if goal.modality == "text":
            log_p = log_p * ((codes == END).cumsum(dim=1) - (codes == END).int() == 0)
        nats.append(log_p.sum(dim=1))
    return torch.cat(nats)


def check_paired(blocks: Mapping[str, Block]) -> None:
    if len({block.batch for block in blocks.values()}) > 1:
        sizes = ", ".join(f"{name} {block.batch}" for name, block in blocks.items())
        raise UserError(f"generation: expected as many rows of everything, got {sizes}. Pair them by stimulus id.")


def condition_block(checkpoint: Checkpoint, name: str, rows: object, *, as_codes: bool = False) -> Block:
    """Data as a block of the model. Raises UserError if it does not fit."""
    tokenizers, config = checkpoint.tokenizers, checkpoint.model.config
    modality = modality_of(name)
    if modality == "brain":
        subject = name.removeprefix("brain:")
        values = tensor_of(rows, f"responses of {subject}", "[b, sites]", dims=(2,)).float()
        if not torch.isfinite(values).all():
            raise UserError(
                f"responses of {subject}: expected finite numbers, got NaN or infinity in row "
                f"{int((~torch.isfinite(values)).any(dim=1).nonzero()[0])}. Remove these trials or repair them."
            )
        if config.brain_input == "sites" and not as_codes:
            return Block("brain", vectors=tokenizers.brain.patches(values, subject), subject=subject)
        latents = tokenizers.brain.latents(values, subject)
        if as_codes or config.brain_input == "codes":
            return Block("brain", codes=tokenizers.brain.quantizer(latents).codes, subject=subject)
        return Block("brain", vectors=latents, subject=subject)
    require(checkpoint, name)
    encoder = config.text_input if modality == "text" else config.image_input
    by_codes = as_codes or encoder == "codes"
    if modality == "text":
        if by_codes:
            assert tokenizers.text is not None
            if as_codes:
                return Block("text", codes=tokenizers.text.encode(captions_in(rows)))
            prompt = tokenizers.text.prompt(captions_in(rows))
            return Block("text", codes=prompt.codes, seen=None if bool(prompt.seen.all()) else prompt.seen)
        if isinstance(rows, str) or (isinstance(rows, Sequence) and any(isinstance(row, str) for row in rows)):
            raise UserError(
                f"text: expected the features '{encoder}', through which this model reads text, got words. "
                "Take them from a dataset that was prepared with these features, or train with text_input codes."
            )
        return Block("text", vectors=feature_rows(checkpoint, rows, "text", encoder), features=encoder)
    given = tensor_of(rows, "image", "pictures [b, h, w, 3]" + ("" if by_codes else " or features [b, t, c]"))
    if not by_codes and given.dim() == 3 and given.is_floating_point():
        return Block("image", vectors=feature_rows(checkpoint, given, "image", encoder), features=encoder)
    pixels = pixels_in(given)
    if by_codes:
        assert tokenizers.image is not None
        return Block("image", codes=tokenizers.image.encode(pixels))
    seen = tokenizers.encoder(encoder)(pixels)
    return Block("image", vectors=feature_rows(checkpoint, seen, "image", encoder), features=encoder)


def tensor_of(rows: object, name: str, form: str, dims: Sequence[int] = (3, 4)) -> Tensor:
    """At least one row of numbers."""
    try:
        values = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name}: expected {form} as one array, got {type(rows).__name__} ({error}). Stack them into an array."
        ) from error
    if values.dim() not in dims or not len(values):
        raise UserError(
            f"{name}: expected {form}, at least one row, got the shape {list(values.shape)}. "
            "A single one is given as an array of one row."
        )
    return values


def captions_in(rows: object) -> list[str]:
    captions = [rows] if isinstance(rows, str) else list(rows) if isinstance(rows, Iterable) else []
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise UserError(f"text: expected a caption, or a list of at least one, got {repr(rows)[:60]}. Give words.")
    return captions


def pixels_in(pictures: Tensor) -> Float[Tensor, "b 3 h w"]:
    """Pictures [b, h, w, 3], uint8 or floats in [0, 1] as `generate` returns them, as floats in [0, 1]."""
    floats = pictures.is_floating_point() and bool(((pictures >= 0) & (pictures <= 1)).all())
    if pictures.dim() != 4 or pictures.shape[-1] != 3 or not (floats or pictures.dtype == torch.uint8):
        raise UserError(
            "image: expected pictures [b, h, w, 3], uint8 or floats in [0, 1], got "
            f"{str(pictures.dtype).removeprefix('torch.')} {list(pictures.shape)}"
            f"{f' from {float(pictures.min()):.3g} to {float(pictures.max()):.3g}' if pictures.numel() else ''}. "
            "A single picture is given as an array of one row; features cannot be scored."
        )
    return pictures.permute(0, 3, 1, 2).float() / (1 if floats else 255)


def feature_rows(checkpoint: Checkpoint, rows: object, name: str, encoder: str) -> Float[Tensor, "b t c"]:
    """Features, as many and as wide as those the model was trained on."""
    tokens, channels = checkpoint.model.interface.features[encoder]
    form = f"features '{encoder}' [b, {tokens}, {channels}]"
    features = tensor_of(rows, name, form, dims=(3,)).float()
    if features.shape[1:] != (tokens, channels):
        raise UserError(
            f"{name}: expected {form}, as the model was trained on, got the shape {list(features.shape)}. "
            "Compute them with the encoder and the settings of the training data."
        )
    return features


def target_block(checkpoint: Checkpoint, name: str, batch: int) -> Block:
    """A target with room for its codes."""
    require(checkpoint, name)
    modality = modality_of(name)
    subject = name.removeprefix("brain:") if modality == "brain" else None
    if subject is not None:
        length = checkpoint.tokenizers.brain.num_codes(subject)
    else:
        length = getattr(checkpoint.model.interface, f"{modality}_codes")
    return Block(modality, codes=torch.zeros(batch, length, dtype=torch.long), subject=subject)


def require(checkpoint: Checkpoint, name: str) -> None:
    """Raises UserError unless the model was trained on this modality, or this subject."""
    modality = modality_of(name)
    if modality == "brain":
        checkpoint.tokenizers.brain.sites_of(name.removeprefix("brain:"))
    if getattr(checkpoint.tokenizers, modality) is None:
        has = [m for m in ("text", "image", "brain") if getattr(checkpoint.tokenizers, m) is not None]
        raise UserError(
            f"generation: expected a modality that the model was trained on ({', '.join(has)}), got '{name}'. "
            f"Train on a dataset that has {'captions' if modality == 'text' else 'pictures'}."
        )


def decode_codes(checkpoint: Checkpoint, codes: Int[Tensor, "b k"], target: Block) -> Tensor:
    """Codes as responses [b, v] or pictures [b, h, w, 3]."""
    if target.subject is not None:
        return checkpoint.tokenizers.brain.decode(codes, target.subject)
    assert checkpoint.tokenizers.image is not None
    return checkpoint.tokenizers.image.decode(codes).permute(0, 2, 3, 1)


def decode_probabilities(checkpoint: Checkpoint, probabilities: Float[Tensor, "b k n"], target: Block) -> Tensor:
    """Distributions over codes as the expected responses [b, v] or pictures [b, h, w, 3]."""
    if target.subject is not None:
        return checkpoint.tokenizers.brain.decode_probabilities(probabilities, target.subject)
    assert checkpoint.tokenizers.image is not None
    return checkpoint.tokenizers.image.decode_probabilities(probabilities).permute(0, 2, 3, 1)


def rows_of(block: Block, rows: slice) -> Block:
    fields = ("codes", "vectors", "dropped", "seen", "unmeasured")
    return replace(block, **{f: getattr(block, f)[rows] for f in fields if getattr(block, f) is not None})


def stack(first: Block, second: Block) -> Block:
    """The rows of two blocks that differ in what they withhold."""
    dropped = [torch.zeros(b.batch, dtype=torch.bool) if b.dropped is None else b.dropped for b in (first, second)]
    both: dict[str, Any] = {
        f: torch.cat([getattr(first, f)] * 2)
        for f in ("codes", "vectors", "seen", "unmeasured")
        if getattr(first, f) is not None
    }
    return replace(first, **both, dropped=torch.cat(dropped))


def target_size(model: OmniModel, target: Block) -> int:
    return getattr(model.vocabulary, target.modality)
