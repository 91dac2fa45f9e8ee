"""Janus-Pro's tokenizers, behind the interfaces of ours: its VQ autoencoder, its pieces of text, its SigLIP encoder.

Enters: what a folder of Janus says of them (`model/janus.py` reads it), as configs that a checkpoint stores. Leaves:
JanusImageTokenizer (pictures <-> codes), JanusTextTokenizer (text <-> codes, with the chat template of its prompts)
and JanusVision (pictures -> features). The two networks are those of `transformers`, imported when one is made.
Source: Janus-Pro (arXiv 2501.17811); VQ-16 of LlamaGen (arXiv 2406.06525).
Differs: a latent takes the code in the nearest direction, as in Janus's own code, whose codebook is normalised on the
way in and on the way out. `transformers` compares lengths too on the way in; codes are the same where the codebook's
vectors have length one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.tokenizers.text import Prompt, TextTokenizer
from brainjanus.tokenizers.vision import pooled, transformers_or_sentence

USER, ASSISTANT = "<|User|>: ", "\n\n<|Assistant|>:"  # Janus's chat template, one turn
NORM_GROUPS = 32  # of channels that Janus's VQ autoencoder normalises together
AT_ONCE = 16  # pictures; one of 384 pixels takes 75 MB for each map of the encoder's first layers


@dataclass(frozen=True)
class JanusImageConfig:
    """The VQ autoencoder; names as in `transformers`, with its defaults, which are Janus-Pro's.

    image_size: pixels along a side. mean, std: of each colour, by which pixels in [0, 1] are standardised.
    """

    image_size: int = 384
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    embed_dim: int = 8
    num_embeddings: int = 16384
    double_latent: bool = False
    latent_channels: int = 256
    base_channels: int = 128
    channel_multiplier: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2

    def __post_init__(self) -> None:
        problems = []
        if self.image_size % 2 ** (len(self.channel_multiplier) - 1):
            problems.append(
                f"image_size must be a multiple of {2 ** (len(self.channel_multiplier) - 1)}, got {self.image_size}"
            )
        if self.base_channels % NORM_GROUPS:
            problems.append(f"base_channels must be a multiple of {NORM_GROUPS}, got {self.base_channels}")
        if problems:
            raise UserError("Janus's image tokenizer: " + "; ".join(problems) + ". Correct its config.")

    @property
    def codes_per_side(self) -> int:
        """Of the grid of codes: every level of the autoencoder but the first halves it."""
        return self.image_size // 2 ** (len(self.channel_multiplier) - 1)

    @property
    def quantizer(self) -> QuantizerConfig:
        """The size of its codebook, as our tokenizers say it."""
        return QuantizerConfig(num_codes=self.num_embeddings, dim=self.embed_dim)


@dataclass(frozen=True)
class JanusVisionConfig:
    """The SigLIP encoder; names as in `transformers`, with its defaults, which are Janus-Pro's.

    most_tokens: features of a picture, averaged over cells of a coarser grid if the encoder has more of them; None
    keeps all.
    """

    image_size: int = 384
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    mlp_ratio: float = 4.0
    attention_bias: bool = True
    use_qk_norm: bool = False
    most_tokens: int | None = None


@dataclass(frozen=True)
class JanusTextConfig:
    """num_codes: rows of the language model's embedding, which may be more than there are pieces. end, begin, pad,
    begin_of_image, end_of_image, image: codes of its special pieces. max_length: codes of a text that is a target, its
    end included."""

    num_codes: int
    end: int
    begin: int
    pad: int
    begin_of_image: int
    end_of_image: int
    image: int
    max_length: int = 256


class Codebook(NamedTuple):
    """What is asked of a quantizer: its codebook."""

    codebook: Float[Tensor, "n d"]


# B pictures, H = W pixels along a side, K codes a picture, D codebook dimension, N codebook entries, T tokens
class JanusImageTokenizer(nn.Module):
    """Encode and decode square RGB pictures in [0, 1] with Janus's VQ autoencoder, which is frozen."""

    def __init__(self, config: JanusImageConfig):
        super().__init__()
        self.config = config
        transformers_or_sentence("the image tokenizer of Janus")
        from transformers import JanusVQVAE, JanusVQVAEConfig

        settings = own_fields(config, but=("image_size", "mean", "std"))
        self.vq = JanusVQVAE(JanusVQVAEConfig(**settings, num_patches=config.codes_per_side))
        self.eval().requires_grad_(False)

    @property
    def num_codes(self) -> int:
        """K: how many codes a picture becomes."""
        return self.config.codes_per_side**2

    @property
    def quantizer(self) -> Codebook:
        return Codebook(F.normalize(self.vq.quantize.embedding.weight, dim=-1))

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b k"]:
        """Codes of pictures in [0, 1], row by row. Raises UserError if they are not image_size pixels along a side."""
        check_size(pixels, self.config.image_size)
        codebook, codes = self.quantizer.codebook, []
        for some in pixels.split(AT_ONCE):
            latents = self.vq.quant_conv(self.vq.encoder(standardised(some, self.config).to(codebook.dtype)))
            codes += [(codebook @ latent.flatten(1)).argmax(dim=0) for latent in latents]
        return torch.stack(codes)

    def decode(self, codes: Int[Tensor, "b k"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1]."""
        return self.decode_vectors(self.quantizer.codebook[codes]).clamp(0, 1)

    def decode_probabilities(self, probabilities: Float[Tensor, "b k n"]) -> Float[Tensor, "b 3 h w"]:
        """The expected picture under one distribution over codes per position: the expected vectors, decoded."""
        codebook = self.quantizer.codebook
        return self.decode_vectors(probabilities.to(codebook.dtype) @ codebook).clamp(0, 1)

    def decode_vectors(self, vectors: Float[Tensor, "b k d"]) -> Float[Tensor, "b 3 h w"]:
        """Codebook vectors, or means of them, as pixels, not clamped to [0, 1]."""
        side, codebook = self.config.codes_per_side, self.vq.quantize.embedding.weight
        grid = vectors.to(codebook.dtype).transpose(1, 2).unflatten(2, (side, side))
        mean, std = channels(self.config.mean, grid), channels(self.config.std, grid)
        return (self.vq.decoder(self.vq.post_quant_conv(grid)) * std + mean).float()


class JanusVision(nn.Module):
    """Features of pictures by Janus's understanding encoder, frozen; the model brings them to its width."""

    def __init__(self, config: JanusVisionConfig):
        super().__init__()
        self.config = config
        transformers_or_sentence("the understanding encoder of Janus")
        from transformers import JanusVisionConfig as Settings
        from transformers import JanusVisionModel

        settings = own_fields(config, but=("mean", "std", "most_tokens"))
        side = config.image_size // config.patch_size
        self.siglip = JanusVisionModel(Settings(**settings, num_image_tokens=side**2))
        # Not among the weights, so it is not there yet when the model was made without memory.
        positions = torch.arange(side**2, device="cpu")[None]
        self.siglip.embeddings.register_buffer("position_ids", positions, persistent=False)
        self.eval().requires_grad_(False)

    @property
    def size(self) -> tuple[int, int]:
        """How many features a picture becomes, and how long each is."""
        side = self.config.image_size // self.config.patch_size
        return pooled(torch.zeros(1, side**2, 1), self.config.most_tokens).shape[1], self.config.hidden_size

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t c"]:
        """Features of pictures in [0, 1]. Raises UserError if they are not image_size pixels along a side."""
        check_size(pixels, self.config.image_size)
        weight = self.siglip.embeddings.patch_embedding.weight
        seen = self.siglip(standardised(pixels.to(weight.device), self.config).to(weight.dtype)).last_hidden_state
        return pooled(seen.float(), self.config.most_tokens)


class JanusTextTokenizer(TextTokenizer):
    """Janus's pieces of text. A text that is a condition is the user's turn of a chat, without an end of its own."""

    def __init__(self, tokenizer: Tokenizer, config: JanusTextConfig):
        super().__init__(tokenizer, config.max_length)
        self.config = config
        self.end = config.end
        # Padding is what takes the place of a withheld prompt in Janus's guidance; its replies begin behind the colon
        # of the assistant's turn.
        self.controls = {
            "begin": config.begin,
            "image": config.begin_of_image,
            "features": config.begin_of_image,
            "dropped": config.pad,
            "text": self.turn(ASSISTANT)[-1],
        }

    @property
    def num_codes(self) -> int:
        return self.config.num_codes

    def turn(self, text: str) -> list[int]:
        return super().pieces([text])[0]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Codes of texts as the assistant writes them, behind a space."""
        return super().pieces([f" {text.strip()}" for text in texts])

    def prompt(self, texts: Sequence[str]) -> Prompt:
        """Texts as prompts of pictures: the user's turn, and the assistant's as far as its colon."""
        return ragged([self.turn(f"{USER}{text.strip()}{ASSISTANT}") for text in texts], self.end)

    def chat(self, texts: Sequence[str]) -> Prompt:
        """Texts as questions without a picture; the colon, which opens the reply, is not part of it."""
        return ragged([self.turn(f"{USER}{text.strip()}{ASSISTANT}")[:-1] for text in texts], self.end)

    def user(self, batch: int) -> Prompt:
        """How the user's turn begins, where a picture comes first."""
        return ragged([self.turn(USER)] * batch, self.end)

    def question(self, texts: Sequence[str]) -> Prompt:
        """What follows a picture: its end, a question, and the assistant's turn without the colon, which opens the
        reply."""
        rows = [self.turn(f"\n{text.strip()}{ASSISTANT}")[:-1] for text in texts]
        return ragged([[self.config.end_of_image, *row] for row in rows], self.end)

    @classmethod
    def read(cls, folder: Path, config: JanusTextConfig) -> "JanusTextTokenizer":
        """The pieces out of a tokenizer.json. Raises UserError if it is missing or damaged."""
        return cls(TextTokenizer.load(folder, config.max_length).tokenizer, config)


def ragged(rows: Sequence[Sequence[int]], fill: int) -> Prompt:
    """Rows of different lengths as one prompt."""
    longest = max(map(len, rows), default=0)
    codes = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return Prompt(codes.reshape(len(rows), longest), torch.arange(longest) < lengths[:, None])


def own_fields(config: Any, but: Sequence[str]) -> dict[str, Any]:
    """The settings of a network, without those that are about what stands around it."""
    return {field.name: getattr(config, field.name) for field in fields(config) if field.name not in but}


def channels(values: Sequence[float], like: Tensor) -> Float[Tensor, "3 1 1"]:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def standardised(pixels: Float[Tensor, "b 3 h w"], config: Any) -> Float[Tensor, "b 3 h w"]:
    return (pixels - channels(config.mean, pixels)) / channels(config.std, pixels)


def check_size(pixels: Float[Tensor, "b 3 h w"], size: int) -> None:
    if pixels.shape[-2:] != (size, size):
        raise UserError(
            f"picture: expected {size} x {size} pixels, as Janus takes them, got {pixels.shape[-2]} x "
            f"{pixels.shape[-1]}. Resize it, or prepare the dataset with --image-size {size}."
        )
