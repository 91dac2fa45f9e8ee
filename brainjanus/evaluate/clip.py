"""CLIP's embeddings of pictures and captions, and the scores made of them.

Enters: pictures and captions. Leaves: embeddings of unit length (Radford et al. 2021), CLIP-S and RefCLIP-S (Hessel et
al. 2021: ViT-B/32, in fp32). Pictures are prepared in one of two ways: `embed_pictures` as OpenAI's CLIP prepares them
(short side by antialiased bicubic resize, centre crop), `embed_resized` as MindEye2's evaluation prepares tensors
(bilinear, antialiased, no crop; its ViT-L/14 embeddings are not of unit length, which Pearson's r does not see).
Weights are read from a folder, or from the hub if the user names a model there.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from brainjanus.core.errors import UserError

CLIP_PREFIX = "A photo depicts "
CLIP_WEIGHT = 2.5
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures
BATCH = 64


# N stimuli, K references, D width
class ClipModel:
    """A frozen CLIP; see `load`."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        self.name, self.size = name, int(model.config.vision_config.image_size)

    @classmethod
    def load(cls, folder_or_hub_name: Path | str, device: str = "cpu") -> "ClipModel":
        """Load a CLIP model and its tokenizer in the form of transformers, safetensors only.

        Raises UserError if it is absent, damaged or no CLIP, or transformers is not installed.
        """
        model, tokenizer = pretrained(str(folder_or_hub_name), "CLIPModel", "CLIPTokenizer", "CLIP")
        return cls(model.to(device), tokenizer, str(folder_or_hub_name))

    @property
    def definition(self) -> str:
        """What made its embeddings."""
        from transformers import __version__

        config = self._model.config.vision_config
        kind = f"{config.num_hidden_layers} layers of {config.hidden_size}, patch {config.patch_size}"
        return f"CLIP {Path(self.name).name} ({kind}), transformers {__version__}"

    def embed_pictures(self, pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        """Embeddings of RGB pictures, prepared as OpenAI's CLIP does."""
        batches = []
        for start in range(0, len(pictures), BATCH):
            cropped = np.stack([_cropped(picture, self.size) for picture in pictures[start : start + BATCH]])
            batches.append(self._embed(torch.from_numpy(cropped).permute(0, 3, 1, 2).float() / 255))
        return np.concatenate(batches)

    def embed_resized(self, pictures: Float[np.ndarray, "n 3 h w"]) -> Float[np.ndarray, "n d"]:
        """Embeddings of RGB pictures in [0, 1], prepared as MindEye2's evaluation does."""
        batches = []
        for start in range(0, len(pictures), BATCH):
            given = torch.from_numpy(np.asarray(pictures[start : start + BATCH], np.float32))
            size = (self.size, self.size)
            batches.append(self._embed(F.interpolate(given, size, mode="bilinear", antialias=True)))
        return np.concatenate(batches)

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Embeddings of captions as they are (CLIP-S puts CLIP_PREFIX before each); what is too long is cut."""
        batches = []
        longest = int(self._model.config.text_config.max_position_embeddings)
        for start in range(0, len(captions), BATCH):
            inputs = self._tokenizer(
                list(captions[start : start + BATCH]), return_tensors="pt", padding=True, truncation=True,
                max_length=longest,
            ).to(self._model.device)  # fmt: skip
            pooled = self._model.text_model(**inputs).pooler_output
            batches.append(_unit(self._model.text_projection(pooled)))
        return np.concatenate(batches)

    @torch.no_grad()
    def _embed(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[np.ndarray, "b d"]:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        pixels = ((pixels - mean) / std).to(self._model.device)
        return _unit(self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output))


def clip_s(pictures: Float[np.ndarray, "n d"], captions: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    """CLIP-S of each picture and its caption, from embeddings; it can exceed 1."""
    return CLIP_WEIGHT * np.maximum(np.einsum("nd,nd->n", pictures.astype(np.float64), captions), 0)


def ref_clip_s(
    pictures: Float[np.ndarray, "n d"],
    captions: Float[np.ndarray, "n d"],
    references: Sequence[Float[np.ndarray, "_ d"]],
) -> Float[np.ndarray, "n"]:
    """RefCLIP-S: the harmonic mean of CLIP-S and the cosine with the nearest reference; 0 if either is 0."""
    image = clip_s(pictures, captions)
    cosines = [(group.astype(np.float64) @ said).max() for group, said in zip(references, captions, strict=True)]
    text = np.maximum(cosines, 0)
    return np.divide(2 * image * text, image + text, out=np.zeros(len(image)), where=image + text > 0)


def pretrained(name: str, model_class: str, tokenizer_class: str, purpose: str) -> tuple[Any, Any]:
    """A model and its tokenizer by transformers, from a folder, or from the hub if there is no such folder.

    Raises UserError if transformers is not installed, or the model cannot be read.
    """
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(
            f"{purpose}: expected the library transformers to read '{name}', got '{error}'. "
            "Run pip install 'brainjanus[vision-metrics]'."
        ) from error
    local = Path(name).is_dir()
    if not local and (Path(name).is_absolute() or name.startswith(".") or name.count(os.sep) > 1):
        raise UserError(
            f"{purpose}: expected a folder with a model in the form of transformers, got '{name}', which does not "
            "exist. Is the path complete? Pass the folder that holds config.json, or the model's name on the hub."
        )
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what it would warn of, missing weights, is looked at below
    try:
        tokenizer = getattr(transformers, tokenizer_class).from_pretrained(name, local_files_only=local)
        model, report = getattr(transformers, model_class).from_pretrained(
            name, local_files_only=local, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"{purpose}: expected a model in the form of transformers (config.json, model.safetensors, tokenizer) in "
            f"'{name}', got '{first}'. Is the folder another model's or incomplete, or the hub out of reach? Download "
            "it where there is a network and pass its folder."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # BERTScore reads no pooler
    if missing:
        raise UserError(
            f"{purpose}: expected all weights of a {type(model).__name__} in '{name}', got none for '{missing[0]}'. "
            "Are these another model's weights? Pass the folder of the right one."
        )
    return model, tokenizer


def _cropped(picture: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle of a picture whose short side was resized to `size`."""
    image = Image.fromarray(picture)
    short = min(image.size)
    width, height = (size * side // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _unit(vectors: Float[Tensor, "b d"]) -> Float[np.ndarray, "b d"]:
    return F.normalize(vectors.float(), dim=-1).cpu().numpy()
