"""Training of the tokenizers: one step function for brains, one for pictures; captions need no gradient."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.tokenizers.image import ImageTokenizer
from brainjanus.tokenizers.quantizer import perplexity
from brainjanus.train.fit import fit
from brainjanus.train.optim import OptimConfig


def fit_brain_tokenizer(
    tokenizer: BrainTokenizer, values: Mapping[str, Float[Tensor, "r v"]], config: OptimConfig, folder: Path, seed: int
) -> BrainTokenizer:
    """Train on the responses of all subjects (training split, z-scored); each step sees one subject."""
    subjects = list(values)

    def losses_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        subject = subjects[step % len(subjects)]
        rows = torch.randint(len(values[subject]), (config.batch_size,), generator=generator)
        x = values[subject][rows].float()
        out = tokenizer(x, subject)
        tokenizer.quantizer.update(out.latents, out.quantized.codes, generator)
        distortion = F.mse_loss(out.values.float(), x)
        used = torch.tensor(perplexity(out.quantized.codes, tokenizer.quantizer.config.num_codes))
        return {"loss": distortion + out.quantized.loss, "mse": distortion, "perplexity": used}

    fit(tokenizer, losses_of, config, stage="brain tokenizer", folder=folder, seed=seed)
    return tokenizer


def fit_image_tokenizer(
    tokenizer: ImageTokenizer, pixels: UInt8[Tensor, "p 3 h w"], config: OptimConfig, folder: Path, seed: int
) -> ImageTokenizer:
    """Train on the pictures of the training split."""

    def losses_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(pixels), (config.batch_size,), generator=generator)
        x = pixels[rows].float() / 255
        out = tokenizer(x)
        tokenizer.quantizer.update(out.latents, out.quantized.codes, generator)
        wrong = out.pixels.float() - x
        used = torch.tensor(perplexity(out.quantized.codes, tokenizer.quantizer.config.num_codes))
        losses = {"mse": wrong.square().mean(), "perplexity": used}
        return {"loss": wrong.abs().mean() + 4 * losses["mse"] + 0.1 * out.quantized.loss} | losses

    fit(tokenizer, losses_of, config, stage="image tokenizer", folder=folder, seed=seed)
    return tokenizer
