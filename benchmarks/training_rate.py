"""Training rate: how much of what this machine's matrix products achieve is left of them in a training step.

Whole steps of the real loop (`fit`): batch, forward pass, losses, backward pass, clipping, both optimizers. Their model
FLOPs are the products of the forward and the backward pass, as torch counts them (`train/flops.py`). Two references, in
the same precision, with the same threads, run between the steps: the best single product (a tenth of a second, which
may fall between what else the machine does), and the best rate of products kept up for SUSTAINED seconds.
python benchmarks/training_rate.py --out benchmarks/results/training_rate.json [--quick]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from records import Claim, arguments, write
from torch import Tensor, nn

from brainjanus.model.checkpoint import Checkpoint, Tokenizers, interface_of
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.omni import OmniConfig, OmniModel
from brainjanus.model.sequence import Task
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from brainjanus.train.codes import BrainRows, Codes
from brainjanus.train.fit import Steps, fit
from brainjanus.train.flops import step_flops
from brainjanus.train.omni import Drawn, OmniTrainingConfig, counts_of, draw, step_losses
from brainjanus.train.optim import OptimConfig, optimizers_of

BARS = {"float32": 0.65, "bfloat16": 0.55}  # of the model of 30 M parameters
SQUARES = {1024: 8, 2048: 1}  # side of a matrix product -> how often in a round
SUSTAINED = 3.0  # seconds of rounds between two steps
STIMULI, TOKENS, CHANNELS = 64, 64, 64
SITES, PATCH = 3072, 32  # 96 codes of a brain: 162 positions with those of a picture and what opens them
SIZES = {
    "3 M": DecoderConfig(),
    "10 M": DecoderConfig(384, 1024, 6, 6, 6),
    "30 M": DecoderConfig(512, 1376, 9, 8, 8),
    "100 M": DecoderConfig(768, 2048, 14, 12, 12),
}
TASK = Task(("image",), "brain:a")


@dataclass(frozen=True)
class Rate:
    """FLOP/s, the best that were seen. products: of one product. sustained: of SUSTAINED seconds of them. parameters:
    of the model."""

    achieved: float
    products: float
    sustained: float
    parameters: int


def checkpoint_of(decoder: DecoderConfig) -> Checkpoint:
    torch.manual_seed(0)
    brain = BrainTokenizer(BrainTokenizerConfig(patch_size=PATCH), {"a": torch.arange(SITES)})
    tokenizers = Tokenizers(brain, ImageTokenizer(ImageTokenizerConfig()))
    model = OmniModel(OmniConfig(decoder, image_input="seen"), interface_of(tokenizers, {"seen": (TOKENS, CHANNELS)}))
    return Checkpoint(tokenizers, model, {})


def codes_of(checkpoint: Checkpoint) -> Codes:
    """Noise, as a tokenized split."""
    brain, which = checkpoint.tokenizers.brain, torch.arange(STIMULI)
    codes = torch.randint(brain.config.quantizer.num_entries, (STIMULI, brain.num_codes("a")))
    rows = BrainRows(which, which < 0, torch.randn(STIMULI, SITES), codes)
    features = {"seen": torch.randn(STIMULI, TOKENS, CHANNELS)}
    each = [i[None] for i in which]
    return Codes(tuple(map(str, which.tolist())), None, None, each, None, each, features, {"a": rows}, brain)


def rate_of(decoder: DecoderConfig, optim: OptimConfig) -> Rate:
    """Of the steps of a training but the first, which warms up, and the last, which saves."""
    checkpoint = checkpoint_of(decoder)
    model, tokenizers = checkpoint.model, checkpoint.tokenizers
    codes, config = codes_of(checkpoint), OmniTrainingConfig(optim=optim)
    tokenizers.brain.requires_grad_(False)
    products = Products(getattr(torch, optim.precision))
    began: list[float] = []
    took: list[float] = []
    flops = 0

    def draw_rows(step: int, generator: torch.Generator, rows: slice) -> Drawn:
        return draw(codes, TASK, generator, config, model.config, optim.batch_size, rows)

    def losses(call: Callable[..., Tensor], drawn: Drawn, _: torch.Generator, counts: Tensor) -> dict[str, Tensor]:
        nonlocal flops
        if began:
            took.append(time.perf_counter() - began[-1])
        with torch.autocast("cpu", enabled=False):
            products.run()
        began.append(time.perf_counter())
        flops = step_flops(model, drawn.batch.conditions, drawn.batch.target)
        return step_losses(call, tokenizers, drawn, counts, config)

    with tempfile.TemporaryDirectory() as folder:
        fit(model, Steps(draw_rows, losses, counts_of), optim, stage="rate", folder=Path(folder), seed=0)
    return Rate(flops / min(took[1:]), products.best, products.sustained, sum(p.numel() for p in model.parameters()))


class Products:
    """Square matrix products, and the best rates of them so far."""

    def __init__(self, dtype: torch.dtype):
        self.best = self.sustained = 0.0
        self.matrices = {side: torch.randn(side, side).to(dtype) for side in SQUARES}
        self.out = {side: torch.empty_like(matrix) for side, matrix in self.matrices.items()}

    @torch.no_grad()
    def run(self) -> None:
        began, flops = time.perf_counter(), 0
        while time.perf_counter() - began < SUSTAINED:
            for side in (side for side, times in SQUARES.items() for _ in range(times)):
                start = time.perf_counter()
                torch.mm(self.matrices[side], self.matrices[side], out=self.out[side])
                self.best = max(self.best, 2 * side**3 / (time.perf_counter() - start))
                flops += 2 * side**3
        self.sustained = max(self.sustained, flops / (time.perf_counter() - began))


def optimizer_seconds(decoder: DecoderConfig, repeats: int) -> tuple[float, float]:
    """Of a step of our Muon and of torch's, on the same matrices, in turn."""
    models = [checkpoint_of(decoder).model for _ in range(2)]
    ours = optimizers_of(models[0], OptimConfig())[-1]
    hidden = {id(p) for group in ours.param_groups for p in group["params"]}
    names = [name for name, p in models[0].named_parameters() if id(p) in hidden]
    theirs = torch.optim.Muon([models[1].get_parameter(name) for name in names], adjust_lr_fn="match_rms_adamw")
    best = [float("inf"), float("inf")]
    for model in models:
        randomise(model.parameters())
    for _ in range(repeats):
        for index, optimizer in enumerate((ours, theirs)):
            start = time.perf_counter()
            optimizer.step()
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0], best[1]


def randomise(parameters: Iterable[nn.Parameter]) -> None:
    """Gradients of noise."""
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)


def claims(options: argparse.Namespace) -> list[Claim]:
    steps, batch = (3, 8) if options.quick else (8, 64)
    optim = OptimConfig(steps=steps, batch_size=batch, save_every=steps, learning_rate=1e-4)
    found: list[Claim] = []

    def add(size: str, optim: OptimConfig, bar: float | None = None) -> None:
        rate = rate_of(SIZES[size], optim)
        told = f"{size} ({rate.parameters / 1e6:.1f} M), {optim.optimizer}, {optim.precision}"
        for reference, value in (("best product", rate.products), ("products sustained", rate.sustained)):
            found.append(Claim(told, rate.achieved / 1e9, "GFLOP/s", reference, value / 1e9, bar))

    for precision, bar in BARS.items():
        add("30 M", replace(optim, precision=precision), bar)
    for size in ("3 M",) if options.quick else SIZES:
        for optimizer in ("muon", "adamw"):
            if (size, optimizer) != ("30 M", "muon"):
                add(size, replace(optim, optimizer=optimizer, precision="float32"))
    seconds, torchs = optimizer_seconds(SIZES["3 M" if options.quick else "30 M"], 2 if options.quick else 5)
    found.append(Claim("a step of our Muon", seconds, "s", "torch's Muon", torchs, bar=1.0, at_most=True))
    return found


def main() -> None:
    options = arguments(__doc__)
    write(claims(options), options.out)


if __name__ == "__main__":
    main()
