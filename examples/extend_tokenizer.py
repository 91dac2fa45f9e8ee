"""An encoder and a quantizer of the brain tokenizer: brainjanus train tokenizer data/mine --out runs/signs
--extend extend_tokenizer.py --tokenizer.encoder linear --tokenizer.quantizer.kind signs
--tokenizer.quantizer.num-codes 64 --tokenizer.quantizer.dim 6
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import brainjanus as bj
from brainjanus.recipes import tokenizer_fitting
from brainjanus.tokenize import report_tokenizer, train_tokenizer
from brainjanus.tokenizers.coder import Coder
from brainjanus.tokenizers.folder import load_tokenizer
from brainjanus.tokenizers.quantizer import FixedQuantizer, QuantizerConfig


@bj.add_encoder("linear")
class LinearCoder(Coder):
    """A matrix for each patch, and one back. B batch, K patches of P sites, D numbers of a latent."""

    def __init__(self, dim: int, sites: dict, spread: float = 1.0):
        super().__init__()
        shapes = {f"brain:{who}": (s.num_patches, s.patch_size, dim) for who, s in sites.items()}
        self.into = nn.ParameterDict({who: spread * torch.randn(s) * s[1] ** -0.5 for who, s in shapes.items()})
        self.out = nn.ParameterDict({who: torch.zeros(k, d, p) for who, (k, p, d) in shapes.items()})

    def encode(self, patches: Tensor, subject: str) -> Tensor:
        return torch.einsum("bkp,kpd->bkd", patches, self.into[f"brain:{subject}"])

    def decode(self, vectors: Tensor, subject: str) -> Tensor:
        return torch.einsum("bkd,kdp->bkp", vectors, self.out[f"brain:{subject}"])


@bj.add_quantizer("signs")
class SignQuantizer(FixedQuantizer):
    """The sign of each number of a latent: 2^dim codes, none learned (Yu et al. 2023, lookup-free quantization)."""

    def __init__(self, config: QuantizerConfig):
        bits = 2 ** torch.arange((config.num_codes - 1).bit_length())
        super().__init__(config, (torch.arange(config.num_codes)[:, None] & bits > 0) * 2.0 - 1)


def main(dataset: bj.Dataset, out: Path, steps: int = 300) -> None:
    signs = {"kind": "signs", "num_codes": 64, "dim": 6}
    settings = {"encoder": "linear:spread=0.5", "patch_size": 16, "quantizer": signs}
    config = tokenizer_fitting(dataset).changed({"tokenizer": settings, "training.steps": steps})
    train_tokenizer(dataset, out / "signs", config)
    loaded, who = load_tokenizer(out / "signs").tokenizer, dataset.subjects[0]
    kept = report_tokenizer(out / "signs", dataset).of("voxel_r", who)  # of held-out responses; also writes a page
    print(f"{loaded.num_codes(who)} codes, {loaded.bits(who):.0f} bits a response: voxel r {kept.value:.2f}")
    print(f"principal components at as many bits {kept.baseline:.2f}, the mean response {kept.floor:.2f}")


if __name__ == "__main__":
    out = Path(tempfile.mkdtemp())
    main(bj.simulate(out / "simulated", bj.SimulationConfig(1, 200, num_test=40)), out)
