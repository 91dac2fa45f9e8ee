"""A language model's decoder out of its folder: a Llama in the Hugging Face format enters, sizes and weights leave.

    FOLDER/config.json            sizes
        model.safetensors         weights, or shards with an index

Parameter names are those of our decoder, so that tensors are put in their places as they are; its words are left where
they are, as a model has pieces of text, and heads, of its own. What this decoder has not (biases, norms of queries and
keys, stretched rotary positions, sliding windows) is refused: it would be another model.
Source: Touvron et al. 2023, as `LlamaForCausalLM` and `MistralForCausalLM` of transformers write it.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from brainjanus.core.config import read_json
from brainjanus.core.errors import UserError
from brainjanus.core.weights import MOST_NAMED, opened, weight_files
from brainjanus.model.decoder import Decoder, DecoderConfig

LLAMA = "llama:"  # how the names of such backbones begin
TYPES = ("llama", "mistral")
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
    "rms_norm_eps",
)  # fmt: skip
LEFT_OUT = ("embed_tokens.weight", "lm_head.weight")  # words, and what predicts them
ROWS_FOR_SCALE = 4096  # of the embedding, which its spread is measured on


class Begun(NamedTuple):
    """decoder: its sizes. entry_scale: the standard deviation of what it is used to."""

    decoder: DecoderConfig
    entry_scale: float


def open_llama(folder: Path) -> Begun:
    """What a folder says; of its weights, a part of the embedding is read.

    Raises UserError if it is another model than a Llama, or is not complete.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"omni.backbone '{LLAMA}{folder}': expected a folder with config.json and model.safetensors, got none "
            "called config.json. Check the path; a name on the hub has to be downloaded first."
        )
    facts = read_json(folder / "config.json")
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    heads, width = facts.get("num_attention_heads"), facts.get("hidden_size")
    expected = {
        "model_type": (facts.get("model_type"), TYPES),
        "hidden_act": (facts.get("hidden_act", "silu"), ("silu",)),
        "attention_bias": (facts.get("attention_bias", False), (False,)),
        "mlp_bias": (facts.get("mlp_bias", False), (False,)),
        "sliding_window": (facts.get("sliding_window"), (None,)),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), ("default",)),
    }
    if isinstance(heads, int) and isinstance(width, int) and heads:
        expected["head_dim"] = (facts.get("head_dim") or width // heads, (width // heads,))
    wrong = [f"{name} {got!r}" for name, (got, known) in expected.items() if got not in known]
    wrong += [f"no {name}" for name in SIZES if name not in facts]
    if wrong:
        raise UserError(
            f"{folder / 'config.json'}: expected the settings of a Llama (model_type {' or '.join(TYPES)}, no biases, "
            f"plain rotary positions), got {', '.join(wrong)}. Add a backbone of your own for it (add_backbone), or "
            "take another model."
        )
    theta = rope.get("rope_theta", facts.get("rope_theta", 10_000.0))
    sizes = {name: facts[name] for name in SIZES} | {"num_key_value_heads": facts.get("num_key_value_heads", heads)}
    tensors = files_of(folder)
    if LEFT_OUT[0] not in tensors:
        raise UserError(f"{folder}: expected the tensor {LEFT_OUT[0]}, got none. Fetch the files again.")
    rows = tensor(tensors, LEFT_OUT[0], ROWS_FOR_SCALE).float()
    return Begun(DecoderConfig(**sizes, rope_theta=float(theta)), float(rows.std()))


@torch.no_grad()
def load_llama(decoder: Decoder, folder: Path) -> None:
    """Put the weights of a folder in their places. Raises UserError naming those that are missing or do not fit."""
    tensors, own = files_of(folder), decoder.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - tensors.keys()]
    wrong += [f"{n} is unknown" for n in tensors.keys() - own.keys() - {*LEFT_OUT} if not n.endswith(".inv_freq")]
    if not wrong:
        for name, place in own.items():
            found = tensor(tensors, name)
            if found.shape != place.shape:
                wrong.append(f"{name} has shape {list(found.shape)} instead of {list(place.shape)}")
            else:
                place.copy_(found)
    if wrong:
        raise UserError(
            f"{folder}: expected the tensors that config.json describes, got others "
            f"({'; '.join(sorted(wrong)[:MOST_NAMED])}). Config and weights are of two models: fetch them again."
        )


def files_of(folder: Path) -> dict[str, tuple[Path, str]]:
    """Each tensor by its name in our decoder: the file, and its name there."""
    return {name.removeprefix("model."): (file, name) for name, file in weight_files(folder).items()}


def tensor(files: dict[str, tuple[Path, str]], name: str, rows: int | None = None) -> Float[Tensor, "..."]:
    """A tensor, or its first rows."""
    file, theirs = files[name]
    return opened(file).get_slice(theirs)[: rows or None]
