"""Training of Janus-Pro on a GPU: share of its matrix products, samples a second, peak memory beside the computed one.

Weights and codes are noise, as neither decides how long a step takes; sizes, sequences, losses and the loop are those
of the recipes nsd-1b and nsd-7b, whose four published directions take turns. Model FLOPs are those of the forward and
the backward pass (`train/flops.py`), without what is computed again; the reference is the best bf16 product of two
random 8192 x 8192 matrices on the same card that any of the trainings saw between its steps.
python benchmarks/training_gpu.py --out benchmarks/results/training_gpu.json [--quick]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from records import Claim, arguments, write
from torch import Tensor

from brainjanus.core.errors import UserError
from brainjanus.memory import Step, Study, janus_model, step_peak
from brainjanus.model.checkpoint import JANUS, Tokenizers
from brainjanus.model.omni import OmniConfig, OmniModel
from brainjanus.model.sequence import Task
from brainjanus.recipes import RunConfig, named
from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.tokenizers.janus import JanusImageConfig
from brainjanus.train.codes import BrainRows, Codes
from brainjanus.train.fit import Steps, fit
from brainjanus.train.flops import step_flops
from brainjanus.train.omni import Drawn, counts_of, draw, step_losses
from brainjanus.train.parallel import Hardware
from brainjanus.train.trained import prepare, recompute

BAR, WITHIN = 0.45, 0.10  # of the products; of the computed memory
STIMULI, WORDS = 256, 16  # of the noise; codes of a caption
TASKS = [
    Task(("image",), "brain:a"),
    Task(("text",), "brain:a"),
    Task(("brain:a",), "image"),
    Task(("brain:a",), "text"),
]
SIDE, DEVICE = 8192, "cuda"
PRODUCTS = "bf16 products"


class Case(NamedTuple):
    recipe: str
    trained: str
    recompute: bool
    rows_at_once: int = 0

    @property
    def name(self) -> str:
        again = ", recomputed" if self.recompute else ""
        part = f", {self.rows_at_once} rows at once" if self.rows_at_once else ""
        return f"{self.recipe.removeprefix('nsd-').upper()} {self.trained}{again}{part}"


CASES = [
    Case("nsd-1b", "full", False),  # where the card holds it
    Case("nsd-1b", "full", False, 16),
    Case("nsd-1b", "full", True),
    Case("nsd-1b", "lora", False),
    Case("nsd-1b", "lora", True),
    Case("nsd-7b", "lora", True),
]


class Measured(NamedTuple):
    """seconds: of each step. flops: of each step. products: FLOP/s, the best. peak: bytes, by torch's allocator."""

    seconds: list[float]
    flops: list[int]
    products: float
    peak: int
    saving: float


def codes_of(config: OmniConfig, tokens: int, channels: int, brain: BrainTokenizer, words: int) -> Codes:
    """Noise, as a tokenized split."""
    image, which = JanusImageConfig(), torch.arange(STIMULI)
    sites = brain.num_sites("a")
    codes = torch.randint(brain.config.quantizer.num_entries, (STIMULI, brain.num_codes("a")))
    rows = BrainRows(which, which < 0, torch.randn(STIMULI, sites), codes)
    pictures = torch.randint(image.num_embeddings, (STIMULI, image.codes_per_side**2))
    captions = torch.randint(300, 1000, (STIMULI, words))
    each = [i[None] for i in which]
    features = {JANUS: torch.randn(STIMULI, tokens, channels)}
    return Codes(tuple(map(str, which.tolist())), None, pictures, each, captions, each, features, {"a": rows}, brain)


def best_product(best: float = 0.0, times: int = 10) -> float:
    """FLOP/s of the best of a few products, or what was seen before."""
    a = torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16)
    out = torch.empty_like(a)
    for _ in range(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        torch.cuda.synchronize()
        best = max(best, 2 * SIDE**3 / (time.perf_counter() - start))
    return best


def models_of(case: Case) -> tuple[RunConfig, OmniModel, BrainTokenizer, Codes]:
    recipe, study = named(case.recipe), Study(subjects=1)
    config, interface = janus_model(recipe, study)
    vocabulary = replace(interface.vocabulary, subjects=("a",))
    interface = replace(interface, vocabulary=vocabulary, brain_codes={"a": interface.brain_codes["subj01"]})
    brain = BrainTokenizer(recipe.brain_tokenizer, {"a": torch.arange(study.sites)}).eval()
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    # frozen weights are held in what Janus-Pro is published in
    torch.set_default_dtype(torch.float32 if case.trained == "full" else torch.bfloat16)
    try:
        with torch.device(DEVICE):
            model = OmniModel(config, interface)
    finally:
        torch.set_default_dtype(before)
    tokens, channels = interface.features[JANUS]
    return recipe, model, brain, codes_of(config, tokens, channels, brain, WORDS)


def measured(case: Case, steps: int, batch: int) -> Measured:
    """Of the real loop. The first pass over the directions warms up; the last step saves, and is not counted."""
    recipe, model, brain, codes = models_of(case)
    model.load_codebooks(torch.randn_like(model.image_codebook), brain.quantizer.codebook)
    optim = replace(recipe.training.optim, steps=steps, batch_size=batch, save_every=steps, precision="bfloat16")
    training = replace(recipe.training, optim=optim, trained=case.trained, recompute=case.recompute)
    prepare(model, training.trained, training.lora, torch.bfloat16)
    if case.recompute:
        recompute(model.decoder.layers)
    tokenizers = Tokenizers(brain.requires_grad_(False)).on(DEVICE)
    began: list[float] = []
    flops = [0] * (steps + 1)
    products, calls, parts = best_product(), 0, -(-batch // (case.rows_at_once or batch))

    def draw_rows(step: int, generator: torch.Generator, rows: slice) -> Drawn:
        return draw(codes, TASKS[step % len(TASKS)], generator, training, model.config, batch, rows)

    def losses(call: Callable[..., Tensor], drawn: Drawn, _: torch.Generator, counts: Tensor) -> dict[str, Tensor]:
        flops[len(began)] += step_flops(model, drawn.batch.conditions, drawn.batch.target)
        return step_losses(call, tokenizers, drawn, counts, training)

    def counted(drawn: Drawn) -> Tensor:
        """Called at the beginning of each step, for each of its parts."""
        nonlocal products, calls
        calls += 1
        if (calls - 1) % parts:
            return counts_of(drawn)
        torch.cuda.synchronize()
        if began:
            took.append(time.perf_counter() - began[-1])
            products = best_product(products, 1)
            torch.cuda.synchronize()
        began.append(time.perf_counter())
        return counts_of(drawn)

    took: list[float] = []
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model, Steps(draw_rows, losses, counted), optim, stage="gpu", folder=Path(folder), seed=0,
            hardware=Hardware(DEVICE, rows_at_once=case.rows_at_once),
        )  # fmt: skip
    saving = time.perf_counter() - began[-1]
    return Measured(took, flops[1 : 1 + len(took)], products, torch.cuda.max_memory_allocated(), saving)


def computed_peak(case: Case, batch: int) -> int:
    recipe = named(case.recipe)
    config, interface = janus_model(recipe, Study(subjects=1))
    training = recipe.training
    step = Step(
        ("brain:subj01",), "image", batch, case.trained, training.lora, training.optim, case.recompute,
        rows_at_once=case.rows_at_once,
    )  # fmt: skip
    return step_peak(config, interface, step).total


def claims(options: argparse.Namespace) -> list[Claim]:
    if not torch.cuda.is_available():
        raise UserError("training_gpu.py: expected a GPU, got none. Run it where there is one.")
    rounds, card = 2 if options.quick else 4, torch.cuda.get_device_properties(0)
    found: list[Claim] = []
    best = 0.0
    for case in CASES[1:2] if options.quick else CASES:
        batch = named(case.recipe).training.optim.batch_size
        computed = computed_peak(case, batch)
        if computed * (1 + WITHIN) > card.total_memory:
            print(f"{case.name}: left out, as it needs {computed / 1e9:.0f} GB")
            continue
        got = measured(case, len(TASKS) * (1 + rounds) + 1, batch)
        torch.cuda.empty_cache()
        least = [min(got.seconds[len(TASKS) + n :: len(TASKS)]) for n in range(len(TASKS))]
        flops = [got.flops[len(TASKS) + n] for n in range(len(TASKS))]
        every = got.seconds[len(TASKS) :]
        best = max(best, got.products)
        bar = BAR if case.recipe == "nsd-1b" and case.trained == "full" and not case.recompute else None
        rates = {"a pass over the directions": (sum(flops) / sum(least), bar)}
        rates |= {str(task): (count / took, None) for task, took, count in zip(TASKS, least, flops, strict=True)}
        for what, (rate, least_share) in rates.items():
            found.append(Claim(f"{case.name}: {what}", rate / 1e12, "TFLOP/s", PRODUCTS, best / 1e12, least_share))
        found.append(Claim(f"{case.name}: samples a second, batch {batch}", batch * len(every) / sum(every), "1/s"))
        found.append(Claim(f"{case.name}: peak memory", got.peak / 1e9, "GB", "brainjanus memory", computed / 1e9,
                           1 + WITHIN, at_most=True))  # fmt: skip
        found.append(Claim(f"{case.name}: the last step, a saved state and the way to the CPU", got.saving, "s"))
        found = [replace(c, reference_value=best / 1e12) if c.reference == PRODUCTS else c for c in found]
        write(found, options.out)  # what is known so far
    return found


def main() -> None:
    options = arguments(__doc__)
    write(claims(options), options.out)


if __name__ == "__main__":
    main()
