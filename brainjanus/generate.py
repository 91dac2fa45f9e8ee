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
from jaxtyping import Float, Int
from torch import Tensor

from brainjanus.core.errors import UserError
from brainjanus.core.fused import nats
from brainjanus.core.processes import gathered, share
from brainjanus.core.progress import progress
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.draft import (
    PICTURE,
    TOLD,
    Drafts,
    beyond_codes,
    draft_block,
    draft_of,
    guess_of,
    lean_of,
    picture_of,
    weighed,
)
from brainjanus.model.omni import OmniModel
from brainjanus.model.sequence import Block, brain_block, modality_of, subject_of, total_length
from brainjanus.model.steps import Steps
from brainjanus.tokenizers.vision import on_device

ROWS_AT_ONCE = 256  # sequences in one batch, samples and guidance counted
WORK_BYTES = 4 * 2**30  # that their keys and values, or their logits, may take on a CPU; on a GPU half of what is free
PICTURES_AT_ONCE = 64  # that are decoded from their codes in one batch
BY_ROW = ("codes", "vectors", "dropped", "seen", "unmeasured", "lean", "kept")  # what a block has for each of its rows


@dataclass(frozen=True)
class GenerationConfig:
    """estimate: "sample" or "mean" (brains and pictures). num_samples: samples that a mean is averaged over; 0 is one
    pass without samples. temperature: 0 takes the likeliest code. top_k: 0 keeps all codes. top_p: 1 keeps all.
    guidance: 1 is none; above 1 what the conditions say is exaggerated. seed: same seed, same samples. trial_noise:
    samples of a brain get what codes leave out of single trials, so that they scatter as repeats do.
    """

    estimate: Literal["sample", "mean"] = "mean"
    num_samples: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    seed: int = 0
    trial_noise: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.estimate not in ("sample", "mean"):
            problems.append(f"estimate must be sample or mean, got '{self.estimate}'")
        if self.num_samples < 0 or self.top_k < 0:
            problems.append(f"num_samples and top_k must be at least 0, got {self.num_samples} and {self.top_k}")
        if self.temperature < 0 or self.guidance < 0:
            problems.append(f"temperature and guidance must be at least 0, got {self.temperature} and {self.guidance}")
        if not 0 <= self.seed < 2**63:
            problems.append(f"seed must lie in [0, 2**63), got {self.seed}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.trial_noise and self.estimate != "sample":
            problems.append("trial_noise is of samples: estimate must be sample, got mean")
        if problems:
            raise UserError("generation: " + "; ".join(problems) + ". Correct these options.")


class Generated(NamedTuple):
    """What a request gives, one entry a row.

    values: captions; pictures float [b, h, w, 3] in [0, 1]; z-scored responses [b, v]. The mean, or the first sample.
    standard_error: of each number of a mean over at least two samples, how far that mean may be from the mean over all
    samples; None without samples. samples: all of them, [b, s, ...] or lists of captions, of estimate "sample".
    """

    values: Tensor | list[str]
    standard_error: Tensor | None = None
    samples: Tensor | list[list[str]] | None = None


class Asked(NamedTuple):
    """Conditions as blocks, and the target with room for its codes.

    draft: of a brain, where the conditions give one, or a small picture that responses alone tell of. beyond: what the
    codes of a brain cannot hold of it, where the model is shown it. trust: how much of what the model adds to it, or
    says in place of it, is believed in a mean. known: the responses of the target that are given, NaN elsewhere.
    """

    conditions: list[Block]
    target: Block
    draft: Tensor | None = None
    beyond: Float[Tensor, "b v"] | None = None
    trust: float = 1.0
    known: Float[Tensor, "b v"] | None = None

    def rows(self, rows: slice) -> "Asked":
        own = {name: x[rows] for name in ("draft", "beyond", "known") if (x := getattr(self, name)) is not None}
        shown = [rows_of(block, rows) for block in self.conditions]
        return self._replace(conditions=shown, target=rows_of(self.target, rows), **own)


# B rows, S samples, K codes of the target, N codebook entries, D length of a codebook vector, V sites
def generate(
    checkpoint: Checkpoint, conditions: Mapping[str, object], target: str, config: GenerationConfig | None = None
) -> Tensor | list[str]:
    """One output per row of the conditions: the values of `estimate`."""
    return estimate(checkpoint, conditions, target, config).values


@torch.no_grad()
def estimate(
    checkpoint: Checkpoint, conditions: Mapping[str, object], target: str, config: GenerationConfig | None = None
) -> Generated:
    """A plausible or the expected output for each row of the conditions.

    conditions: name -> rows; "image": pictures [b, h, w, 3], uint8 or floats in [0, 1], or vision features float
    [b, t, c]; "text": captions, or text features float [b, t, c]; "brain:SUBJECT": z-scored responses [b, v];
    "part:SUBJECT": the same with NaN where a site is not known. None at all is allowed: one row, of anything.
    target: "text", "image" or "brain:SUBJECT"; a response of which a part is given is completed.
    Text is always sampled (temperature 0 is greedy), whatever the estimate.
    Raises UserError if a condition does not fit the model.
    """
    config = config or GenerationConfig()
    if checkpoint.relays is not None and checkpoint.relays.concern((*conditions, target)):
        return relayed(checkpoint, conditions, target, config)
    request = asked_of(checkpoint, conditions, target)
    if request.draft is not None:  # without guidance nothing is shown, not even what codes cannot hold
        share_of_draft = min(1.0, config.guidance)
        trust = 1 - share_of_draft * (1 - request.trust) if config.estimate == "mean" else 1.0
        beyond = None if request.beyond is None else request.beyond * share_of_draft
        request = request._replace(beyond=beyond, trust=trust)
    whole = request.target
    mean = config.estimate == "mean" and whole.modality != "text"
    samples = max(1, config.num_samples)
    rows_at_once = max(1, at_once(checkpoint.model, request, config) // samples)
    uniform = torch.rand(whole.batch, samples, whole.length, generator=torch.Generator().manual_seed(config.seed))
    parts: list[Generated] = []
    own = share(whole.batch)
    with progress(f"{'+'.join(conditions) or 'nothing'}->{target}", len(own)) as advance:
        for start in own[::rows_at_once]:
            rows = slice(start, min(start + rows_at_once, own.stop))
            numbers = range(rows.start, rows.stop)
            parts.append(estimate_rows(checkpoint, request.rows(rows), config, uniform[rows], numbers, mean=mean))
            advance(rows.stop - own.start, None)
    return joined(gathered(parts))


def relayed(
    checkpoint: Checkpoint, conditions: Mapping[str, object], target: str, config: GenerationConfig
) -> Generated:
    """`estimate` of a request that concerns a subject whom others speak for."""
    relays, drafts = checkpoint.relays, checkpoint.drafts
    assert relays is not None and drafts is not None
    check_names(checkpoint, conditions, target)
    given = {name: rows_in(checkpoint, name, rows) for name, rows in conditions.items()}
    check_paired({name: len(rows) for name, rows in given.items()})
    new = subject_of(target) if relays.concern((target,)) else None
    check_drawn(checkpoint, conditions, target, config)
    asked = replace(config, trial_noise=config.trial_noise and new is None)
    answer = relays.answer(
        lambda some, goal: estimate(checkpoint, some, goal, asked),
        lambda rows: condition_block(checkpoint, "image", rows).content.flatten(1),
        drafts, given, target, mean=config.estimate == "mean" and target != "text",
    )  # fmt: skip
    told = Generated(*(part.cpu() if isinstance(part, Tensor) else part for part in answer))
    if new is None or not config.trial_noise:
        return told
    assert isinstance(told.samples, Tensor)
    seeds = seeds_of(config, range(len(told.samples)))
    drawn = told.samples + drafts.scatter(new).draw(told.samples.shape[1], seeds).cpu()
    return Generated(drawn[:, 0], samples=drawn)


def seeds_of(config: GenerationConfig, numbers: Sequence[int]) -> list[int]:
    """By which the noise of a trial is drawn for these rows of a request."""
    return [(config.seed * 1_000_003 + number) % 2**63 for number in numbers]


def check_drawn(
    checkpoint: Checkpoint, conditions: Mapping[str, object], target: str, config: GenerationConfig
) -> None:
    """Raises UserError if samples are asked for of a response that linear maps tell: nothing is drawn of it."""
    relays, subject = checkpoint.relays, subject_of(target)
    assert relays is not None
    if subject is None or (config.estimate == "mean" and not config.num_samples):
        return
    request, new = f"{'+'.join(conditions) or 'nothing'}->{target}", relays.concern((target,))
    if (new and config.estimate == "mean") or not relays.drawn(conditions, target):
        options = ["--estimate sample"] * (config.estimate == "sample") + ["--samples"] * (config.num_samples > 0)
        options += ["--trial-noise"] * config.trial_noise
        raise UserError(
            f"{request}: expected a request for one mean response, as the answer is an expectation that linear maps "
            f"of an adapted subject tell, got {', '.join(options)}. Leave {' and '.join(options)} out."
        )
    if config.trial_noise and new and not drafts_of(checkpoint, target).scatter(subject).axes.any():
        raise UserError(
            f"{request}: expected a subject of whom trials were measured, by which noise is drawn, got {subject}, who "
            "was adapted without any. Leave --trial-noise out, or adapt with some stimuli."
        )


def estimate_rows(
    checkpoint: Checkpoint,
    request: Asked,
    config: GenerationConfig,
    uniform: Float[Tensor, "b s k"],
    numbers: Sequence[int],
    *,
    mean: bool,
) -> Generated:
    """`estimate` of a few rows, in one batch. numbers: which rows of the whole request they are."""
    conditions, goal = request.conditions, request.target
    if mean and config.num_samples == 0:
        return Generated(decode(checkpoint, request, marginal(checkpoint.model, conditions, goal, config.guidance)))
    codebook = codebook_of(checkpoint, goal) if mean else None
    few = uniform.split(at_once(checkpoint.model, request, config), dim=1)
    sampled = [sample(checkpoint.model, conditions, goal, config, some, codebook) for some in few]
    codes = torch.cat([one.codes for one in sampled], dim=1)
    vectors = (
        None if codebook is None else torch.cat([one.vectors for one in sampled if one.vectors is not None], dim=1)
    )
    if vectors is not None:
        values = decode_vectors(checkpoint, request, vectors.mean(dim=1))
        error = None
        if vectors.shape[1] > 1:
            each = torch.stack([decode_vectors(checkpoint, request, v) for v in vectors.unbind(dim=1)])
            error = each.std(dim=0) / len(each) ** 0.5
        return Generated(values, error)
    if goal.modality == "text":
        assert checkpoint.tokenizers.text is not None
        captions = [checkpoint.tokenizers.text.decode(row) for row in codes]
        return Generated([row[0] for row in captions], samples=captions)
    codebook = codebook_of(checkpoint, goal)
    drawn = torch.stack([decode_vectors(checkpoint, request, codebook[c]) for c in codes.unbind(dim=1)], dim=1)
    if config.trial_noise and goal.subject is not None:
        scatter = drafts_of(checkpoint, "trial_noise").scatter(goal.subject)
        noise = scatter.draw(drawn.shape[1], seeds_of(config, numbers)).cpu()
        drawn = drawn + (noise if request.known is None else noise * request.known.isnan()[:, None].cpu())
    return Generated(drawn[:, 0], samples=drawn)


def at_once(model: OmniModel, request: Asked, config: GenerationConfig) -> int:
    """How many sequences are computed in one batch: as many as there is room for the keys and values of, and, where all
    codes are predicted in one pass, for the logits of."""
    decoder, weight = model.config.decoder, next(model.decoder.parameters())
    positions = total_length(request.conditions, request.target.length)
    cache = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * positions
    needed = cache * weight.element_size()
    if config.estimate == "mean" and config.num_samples == 0:  # logits, what guidance makes of them, their softmax
        needed = max(needed, 3 * 4 * request.target.length * getattr(model.vocabulary, request.target.modality))
    room = torch.cuda.mem_get_info(weight.device)[0] // 2 if weight.is_cuda else WORK_BYTES
    return max(1, min(ROWS_AT_ONCE, room // needed) // (1 if config.guidance == 1 else 2))


def joined(parts: Sequence[Generated]) -> Generated:
    """The rows of all parts."""

    def join(which: Sequence[Any]) -> Any:
        if which[0] is None:
            return None
        return torch.cat(list(which)) if isinstance(which[0], Tensor) else [row for part in which for row in part]

    return Generated(*(join(which) for which in zip(*parts, strict=True)))


def marginal(
    model: OmniModel, conditions: Sequence[Block], target: Block, guidance: float = 1.0
) -> Float[Tensor, "b k n"]:
    """p(code k | conditions) for each k by itself, in one pass with all codes of the target hidden."""
    return marginal_logits(model, conditions, target, guidance).softmax(dim=-1)


def marginal_logits(
    model: OmniModel, conditions: Sequence[Block], target: Block, guidance: float = 1.0
) -> Float[Tensor, "b k n"]:
    hidden = torch.ones(target.content.shape[:2], dtype=torch.bool, device=target.content.device)
    logits = model(conditions, target, hidden).float()
    if guidance != 1:
        without = model([block.withheld() for block in conditions], replace(target, lean=None), hidden).float()
        logits = without + guidance * (logits - without)
    return logits


class Sampled(NamedTuple):
    """Codes drawn one after the other, and the vectors that were to be expected in place of each, if wanted."""

    codes: Int[Tensor, "b s k"]
    vectors: Float[Tensor, "b s k d"] | None


def sample(
    model: OmniModel,
    conditions: Sequence[Block],
    target: Block,
    config: GenerationConfig,
    uniform: Float[Tensor, "b s k"],
    codebook: Float[Tensor, "n d"] | None = None,
) -> Sampled:
    """Samples of the target of each row. codebook: that of the target, where its expected vectors are wanted, too.

    uniform: numbers in [0, 1) that decide each draw, so that a row's samples do not depend on its neighbours.
    """
    rows, samples, length = uniform.shape
    guided = config.guidance != 1
    if guided:
        conditions = [stack(block, block.withheld()) for block in conditions]
    many = rows * (2 if guided else 1)
    room = total_length(conditions, length)
    if target.lean is not None:
        each = target.lean.repeat_interleave(samples, dim=0)
        each = torch.cat([each, torch.zeros_like(each)]) if guided else each
        target = replace(target, codes=each.new_zeros(each.shape[:2], dtype=torch.long), lean=each)
    prefix = model.start(conditions, many, room if samples == 1 else total_length(conditions, 0), target)
    steps = Steps(model, prefix.repeat(samples, room), target)
    device = model.embed_tokens.weight.device
    draws = uniform.flatten(0, 1).to(device)
    codes = torch.full((rows * samples, length), model.interface.text_end, device=device)
    vectors = None if codebook is None else codebook.new_zeros(rows * samples, length, codebook.shape[1])
    ended = torch.zeros(rows * samples, dtype=torch.bool, device=device)
    previous = None
    for position in range(length):
        logits = steps(position, previous).float()
        if guided:
            given, without = logits.chunk(2)
            logits = without + config.guidance * (given - without)
        if vectors is not None and codebook is not None:
            vectors[:, position] = logits.softmax(dim=-1) @ codebook
        chosen = draw(logits, draws[:, position], config)
        if target.modality == "text":
            chosen = chosen.masked_fill(ended, model.interface.text_end)
            ended |= chosen == model.interface.text_end
        codes[:, position] = chosen
        if target.modality == "text" and bool(ended.all()):
            break
        previous = chosen.repeat(2) if guided else chosen
    by_row = (rows, samples)
    return Sampled(codes.unflatten(0, by_row), None if vectors is None else vectors.unflatten(0, by_row))


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

    conditions: as for `estimate`. rows: what is scored: pictures, captions or responses, but no features.
    Raises UserError if a condition or the target does not fit the model.
    """
    conditions = spoken_for(checkpoint, conditions, target)
    goal = condition_block(checkpoint, target, rows, as_codes=True)
    request = asked_of(checkpoint, conditions, target, goal)
    many = at_once(checkpoint.model, request, GenerationConfig())
    parts = [slice(start, start + many) for start in range(0, goal.batch, many)]
    return torch.cat([nats_of(checkpoint.model, *request.rows(part)[:2]) for part in parts])


@torch.no_grad()
def score_candidates(
    checkpoint: Checkpoint,
    conditions: Mapping[str, object],
    target: str,
    candidates: object,
    *,
    one_pass: bool = False,
) -> Float[Tensor, "b c"]:
    """log p(candidate | conditions) of every candidate under every row of the conditions, in nats.

    The largest in a row is the likeliest target; the largest in a column, with all rows equally likely before, the
    likeliest condition: identification, retrieval, comparison of hypotheses. candidates: as `rows` of `score`.
    one_pass: each code on its own (the marginals), one pass a row for all candidates (brains and pictures).
    """
    conditions = spoken_for(checkpoint, conditions, target)
    options = condition_block(checkpoint, target, candidates, as_codes=True)
    request = asked_of(checkpoint, conditions, target)
    rows = request.target.batch
    assert options.codes is not None
    many, own = at_once(checkpoint.model, request, GenerationConfig()), share(rows)
    table: list[Tensor] = []
    with progress(f"{'+'.join(conditions) or 'nothing'}->{target}, {options.batch} candidates", len(own)) as advance:
        for row in own:
            one = request.rows(slice(row, row + 1))
            if one_pass:
                log_p = marginal_logits(checkpoint.model, one.conditions, one.target).log_softmax(dim=-1)[0]
                table.append(log_p[torch.arange(options.length, device=log_p.device), options.codes].sum(dim=1).cpu())
            else:
                parts = [rows_of(options, slice(start, start + many)) for start in range(0, options.batch, many)]
                shown = [[repeated(block, part.batch) for block in one.conditions] for part in parts]
                if one.target.lean is not None:
                    parts = [replace(part, lean=one.target.lean.expand(part.batch, -1, -1)) for part in parts]
                nats = [nats_of(checkpoint.model, *both) for both in zip(shown, parts, strict=True)]
                table.append(torch.cat(nats))
            advance(len(table), None)
    return torch.stack(gathered(table))


def spoken_for(checkpoint: Checkpoint, conditions: Mapping[str, object], target: str) -> Mapping[str, object]:
    """The same conditions, where a subject whom others speak for is the first of these. Raises UserError for a target
    of such a subject, which has an expected response, but no likelihood."""
    relays = checkpoint.relays
    if relays is None or not relays.concern((*conditions, target)):
        return conditions
    if relays.concern((target,)) or any(name.startswith("part:") for name in conditions):
        raise UserError(
            f"log p of {target} given {'+'.join(conditions)}: expected a whole response of an adapted subject as a "
            "condition, got it as what is scored, or a part. Score pictures or captions given its response."
        )
    given = {
        name: responses_in(checkpoint, name, rows) if subject_of(name) else rows for name, rows in conditions.items()
    }
    return relays.spoken(given, relays.speakers(given, target)[0])


def nats_of(model: OmniModel, conditions: Sequence[Block], target: Block) -> Float[Tensor, "b"]:
    """log p of the codes of a target, summed."""
    assert target.codes is not None
    logits = model(conditions, target).float()
    log_p = -nats(logits, target.codes)
    if target.modality == "text":
        ends = target.codes == model.interface.text_end
        log_p = log_p * (ends.cumsum(dim=1) - ends.int() == 0)
    return log_p.sum(dim=1).cpu()


def asked_of(checkpoint: Checkpoint, conditions: Mapping[str, object], target: str, goal: Block | None = None) -> Asked:
    """Conditions as blocks, with the draft of a brain. goal: the target's codes, where they are known.

    Raises UserError if a condition does not fit the model, or rows do not pair.
    """
    check_names(checkpoint, conditions, target)
    tokenizer, config = checkpoint.tokenizers.brain, checkpoint.model.config
    brain_input, fold = config.brain_input, config.brain_fold
    given = {name: responses_in(checkpoint, name, rows) for name, rows in conditions.items() if subject_of(name)}
    blocks = {}
    for name, rows in conditions.items():
        if name.startswith("part:"):
            subject, values = str(subject_of(name)), given[name]
            filled = drafts_of(checkpoint, name).complete(values, subject)
            blocks[name] = brain_block(tokenizer, filled, subject, brain_input, fold, values.isnan())
        elif name in given:
            blocks[name] = brain_block(tokenizer, given[name], str(subject_of(name)), brain_input, fold)
        else:
            blocks[name] = condition_block(checkpoint, name, rows)
    every = blocks if goal is None else blocks | {target: goal}
    check_paired({name: block.batch for name, block in every.items()})
    if goal is None:
        goal = target_block(checkpoint, target, next(iter(blocks.values())).batch if blocks else 1)
    subject = str(subject_of(target))
    drafted = None
    if goal.modality == "brain" and checkpoint.drafts is not None:
        drafted = draft_of(checkpoint.drafts, given, subject, blocks)
    if drafted is None:
        return asked_of_stimulus(checkpoint.drafts, given, blocks, goal)
    draft, shown = drafted.values, list(blocks.values())
    assert checkpoint.drafts is not None
    trust = checkpoint.drafts.trust(subject)
    if drafted.kind in TOLD:
        return Asked(shown, goal, draft, trust=float(trust.of(drafted.kind)))
    believed, lean = float(trust.of(drafted.kind)), lean_of(tokenizer, draft, subject, trust.near(drafted.kind))
    goal = replace(goal, lean=lean)
    known = given.get(f"part:{subject}")
    if known is None:
        shown.append(draft_block(tokenizer, draft, subject, brain_input, fold))
    return Asked(shown, goal, draft, beyond_codes(tokenizer, draft, subject, lean), believed, known)


def check_names(checkpoint: Checkpoint, conditions: Mapping[str, object], target: str) -> None:
    """Raises UserError if the target is given, a brain is of nobody, or the model knows no such target."""
    if target in conditions:
        raise UserError(
            f"generation: expected a target that is not among the conditions, got '{target}'. "
            "Leave it out of the conditions, or choose another target."
        )
    unnamed = [name for name in (*conditions, target) if name in ("brain", "part")]
    if unnamed:
        raise UserError(
            f"generation: expected the subject of a brain ({', '.join(checkpoint.tokenizers.brain.subjects)}), got "
            f"'{unnamed[0]}'. Name it: {unnamed[0]}:SUBJECT."
        )
    require(checkpoint, target)


def asked_of_stimulus(
    drafts: Drafts | None, given: Mapping[str, Float[Tensor, "b _"]], blocks: Mapping[str, Block], goal: Block
) -> Asked:
    """A picture or a caption, with what responses let guess of it; and what nothing is drafted of."""
    shown = list(blocks.values())
    if drafts is None or not given or goal.modality == "brain":
        return Asked(shown, goal)
    guess = guess_of(drafts, given)
    shown += [] if guess is None else [guess]
    alone = goal.modality == "image" and len(given) == len(blocks)
    picture = picture_of(drafts, given) if alone else None
    if picture is None:
        return Asked(shown, goal)
    trusts = [float(drafts.trust(str(subject_of(name))).of(PICTURE)) for name in given]
    return Asked(shown, goal, picture, trust=sum(trusts) / len(trusts))


def drafts_of(checkpoint: Checkpoint, name: str) -> Drafts:
    if checkpoint.drafts is None:
        raise UserError(
            f"{name}: expected a model with linear drafts, which know how the sites of a brain go together, got one "
            "without. Train it again with this version."
        )
    return checkpoint.drafts


def responses_in(checkpoint: Checkpoint, name: str, rows: object) -> Float[Tensor, "b v"]:
    """Responses of a subject, of which a part may be NaN where the name says so. Raises UserError for others."""
    subject, expected = str(subject_of(name)), checkpoint.tokenizers.brain.num_sites(str(subject_of(name)))
    values = tensor_of(rows, f"responses of {subject}", "[b, sites]", dims=(2,)).float().to(device_of(checkpoint))
    if values.shape[1] != expected:
        raise UserError(
            f"responses of {subject}: expected {expected} sites, got {values.shape[1]}. Were they made with another "
            "mask? Prepare them with the mask of the training data."
        )
    partly = name.startswith("part:")
    wrong = values.isinf() if partly else ~values.isfinite()
    if wrong.any():
        raise UserError(
            f"responses of {subject}: expected finite numbers, got NaN or infinity in row "
            f"{int(wrong.any(dim=1).nonzero()[0])}. Remove these trials or repair them."
        )
    nothing = values.isnan().all(dim=1)
    if nothing.any():
        raise UserError(
            f"{name}: expected at least one known site in every row, got none in row {int(nothing.nonzero()[0])}. "
            "Give a part of the response, or leave the brain out."
        )
    return values


def device_of(checkpoint: Checkpoint) -> torch.device:
    return checkpoint.model.embed_tokens.weight.device


def check_paired(counts: Mapping[str, int]) -> None:
    """counts: of the rows of each. Raises UserError if they differ."""
    if len(set(counts.values())) > 1:
        sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"generation: expected as many rows of everything, got {sizes}. Pair them by stimulus id.")


def rows_in(checkpoint: Checkpoint, name: str, rows: object) -> Tensor | list[str]:
    """A condition as rows that can be counted, at least one. Raises UserError if it does not fit."""
    if subject_of(name):
        return responses_in(checkpoint, name, rows)
    require(checkpoint, name)
    if modality_of(name) == "text" and (is_words(rows) or checkpoint.model.config.text_input == "codes"):
        return captions_in(rows)
    return tensor_of(rows, name, "pictures [b, h, w, 3] or features [b, t, c]")


def is_words(rows: object) -> bool:
    return isinstance(rows, str) or (isinstance(rows, Sequence) and any(isinstance(row, str) for row in rows))


def condition_block(checkpoint: Checkpoint, name: str, rows: object, *, as_codes: bool = False) -> Block:
    """Data as a block of the model. Raises UserError if it does not fit."""
    tokenizers, config = checkpoint.tokenizers, checkpoint.model.config
    modality = modality_of(name)
    if modality == "brain":
        subject, values = str(subject_of(name)), responses_in(checkpoint, name, rows)
        return brain_block(
            tokenizers.brain, values, subject, "codes" if as_codes else config.brain_input, config.brain_fold
        )
    require(checkpoint, name)
    device = device_of(checkpoint)
    encoder = config.text_input if modality == "text" else config.image_input
    by_codes = as_codes or encoder == "codes"
    if modality == "text":
        if by_codes:
            assert tokenizers.text is not None
            if as_codes:
                return Block("text", codes=tokenizers.text.encode(captions_in(rows)).to(device))
            prompt = tokenizers.text.prompt(captions_in(rows))
            padded = config.text_opening or not bool(prompt.seen.all())
            return Block("text", codes=prompt.codes.to(device), seen=prompt.seen.to(device) if padded else None)
        if is_words(rows):
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
        return Block("image", codes=tokenizers.image.encode(pixels.to(device)))
    seen = on_device(tokenizers.encoder(encoder), device)(pixels)
    return Block("image", vectors=feature_rows(checkpoint, seen, "image", encoder), features=encoder)


@torch.no_grad()
def codes_in(checkpoint: Checkpoint, name: str, rows: object) -> Int[Tensor, "b k"]:
    """Data as codes of its tokenizer, on the CPU. Raises UserError if it does not fit."""
    codes = condition_block(checkpoint, name, rows, as_codes=True).codes
    assert codes is not None
    return codes.cpu()


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
    ranged = pictures.is_floating_point() and pictures.numel() > 0
    if pictures.dim() != 4 or pictures.shape[-1] != 3 or not (floats or pictures.dtype == torch.uint8):
        raise UserError(
            "image: expected pictures [b, h, w, 3], uint8 or floats in [0, 1], got "
            f"{str(pictures.dtype).removeprefix('torch.')} {list(pictures.shape)}"
            f"{f' from {float(pictures.min()):.3g} to {float(pictures.max()):.3g}' if ranged else ''}. "
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
    if not features.isfinite().all():
        raise UserError(
            f"{name}: expected finite features, got NaN or infinity in row "
            f"{int((~features.isfinite()).flatten(1).any(dim=1).nonzero()[0])}. Compute them again, or leave it out."
        )
    return features.to(device_of(checkpoint))


def target_block(checkpoint: Checkpoint, name: str, batch: int) -> Block:
    """A target with room for its codes."""
    require(checkpoint, name)
    modality = modality_of(name)
    subject = name.removeprefix("brain:") if modality == "brain" else None
    if subject is not None:
        length = checkpoint.tokenizers.brain.num_codes(subject)
    else:
        length = getattr(checkpoint.model.interface, f"{modality}_codes")
    codes = torch.zeros(batch, length, dtype=torch.long, device=device_of(checkpoint))
    return Block(modality, codes=codes, subject=subject)


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


def codebook_of(checkpoint: Checkpoint, target: Block) -> Float[Tensor, "n d"]:
    tokenizers = checkpoint.tokenizers
    if target.modality == "brain":
        return tokenizers.brain.quantizer.codebook
    assert tokenizers.image is not None
    return tokenizers.image.quantizer.codebook


def decode(checkpoint: Checkpoint, request: Asked, probabilities: Float[Tensor, "b k n"]) -> Tensor:
    """Distributions over codes as the expected responses [b, v] or pictures [b, h, w, 3]."""
    return decode_vectors(checkpoint, request, probabilities @ codebook_of(checkpoint, request.target))


def decode_vectors(checkpoint: Checkpoint, request: Asked, vectors: Float[Tensor, "b k d"]) -> Tensor:
    """Codebook vectors, or means of them, as responses [b, v], with what they cannot hold, or pictures [b, h, w, 3]."""
    tokenizers, subject = checkpoint.tokenizers, request.target.subject
    if subject is None:
        assert tokenizers.image is not None
        parts = [tokenizers.image.decode_vectors(part).clamp(0, 1) for part in vectors.split(PICTURES_AT_ONCE)]
        pictures = torch.cat(parts)
        if request.draft is not None:
            pictures = weighed(pictures, request.draft, request.trust).clamp(0, 1)
        return pictures.permute(0, 2, 3, 1).cpu()
    values = tokenizers.brain.decode_vectors(vectors, subject)
    if request.draft is not None:
        values = values if request.beyond is None else values + request.beyond
        values = request.trust * values + (1 - request.trust) * request.draft
    if request.known is not None:
        values = torch.where(request.known.isnan(), values, request.known)
    return values.cpu()


def rows_of(block: Block, rows: slice) -> Block:
    return replace(block, **{f: getattr(block, f)[rows] for f in BY_ROW if getattr(block, f) is not None})


def repeated(block: Block, times: int) -> Block:
    """The same rows, so many times."""
    there = [field for field in BY_ROW if getattr(block, field) is not None]
    many: dict[str, Any] = {field: torch.cat([getattr(block, field)] * times) for field in there}
    return replace(block, **many)


def stack(first: Block, second: Block) -> Block:
    """The rows of two blocks that differ in what they withhold."""
    nothing = torch.zeros(first.batch, dtype=torch.bool, device=first.content.device)
    dropped = [nothing if block.dropped is None else block.dropped for block in (first, second)]
    return replace(repeated(first, 2), dropped=torch.cat(dropped))
