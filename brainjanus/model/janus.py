"""Janus-Pro, in and out: a folder in the Hugging Face format enters, a Checkpoint with room for brains leaves.

    JANUS/config.json, generation_config.json       sizes, special tokens
        model.safetensors, or shards with an index  weights
        tokenizer.json, tokenizer_config.json       pieces of text
        preprocessor_config.json                    mean and spread of the pictures' colours

Every tensor of the files has its place and every place its tensor: what is missing, left over or of another shape is
named before anything is read. Weights are mapped, not copied, where the dtype is that of the file and the device is the
CPU; otherwise they are converted one after the other.
Source: Janus-Pro (arXiv 2501.17811) as `JanusForConditionalGeneration` writes it, e.g. deepseek-community/Janus-Pro-1B.
Differs: the language model's head is a matrix of its own also where the file ties it to the embedding, as brains are
trained on both ends.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from brainjanus.core.config import read_json
from brainjanus.core.errors import UserError, first_line, written_beside
from brainjanus.core.vocabulary import CONTROLS
from brainjanus.core.weights import MOST_NAMED, opened, weight_files
from brainjanus.model.checkpoint import JANUS, Checkpoint, Tokenizers, dtype_of, interface_of
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.omni import OmniConfig, OmniModel
from brainjanus.model.sequence import Block
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.janus import (
    JanusImageConfig,
    JanusImageTokenizer,
    JanusTextConfig,
    JanusTextTokenizer,
    JanusVision,
    JanusVisionConfig,
    own_fields,
)
from brainjanus.tokenizers.text import TextTokenizer
from brainjanus.tokenizers.vision import transformers_or_sentence

# How names begin in our model and in their files. Their embedding lies behind our control tokens.
NAMES = {
    "decoder.": "model.language_model.",
    "heads.text.": "lm_head.",
    "heads.image.0.": "model.generation_head.proj_out.",
    "heads.image.2.": "model.generation_head.vision_head.",
    "aligners.image.0.": "model.generation_aligner.fc1.",
    "aligners.image.2.": "model.generation_aligner.hidden_layers.0.",
    f"aligners.features:{JANUS}.1.": "model.aligner.fc1.",
    f"aligners.features:{JANUS}.3.": "model.aligner.hidden_layers.0.",
    "image_codebook": "model.generation_embeddings.weight",
}
EMBEDDING, THEIR_EMBEDDING, HEAD = "embed_tokens.weight", "model.language_model.embed_tokens.weight", "lm_head.weight"
VQ, VISION = "model.vqmodel.", "model.vision_model."
OURS = ("rope_theta", "dropout")  # of a decoder's settings: those that a language model of the library says elsewhere
PLACES = ("places.image", "targets.image", "pointers.image.weight", f"places.features:{JANUS}")  # Janus has none
SPECIAL = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
HUB_FILES = ["*.json", "*.safetensors"]
ROWS_FOR_SCALE = 4096  # of the embedding, which its spread is measured on
TEMPLATE = (  # one turn after the other, in Jinja, with the words of `tokenizers/janus.py`
    "{% for message in messages %}"
    "{{ '<|User|>: ' if message.role|lower == 'user' else '<|Assistant|>: ' }}"
    "{% for part in message.content %}"
    "{{ '<image_placeholder>\n' if part.type == 'image' else part.text|trim }}"
    "{% endfor %}"
    "{{ '\n\n' if message.role|lower == 'user' else eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)


@dataclass(frozen=True, eq=False)
class JanusFolder:
    """What a folder says, before a weight is read. files: tensor -> the file that it is in."""

    path: Path
    decoder: DecoderConfig
    image: JanusImageConfig
    vision: JanusVisionConfig
    text: JanusTextConfig
    files: Mapping[str, Path]
    tied: bool
    opened: dict[Path, Any] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """A tensor, mapped from its file."""
        if name == HEAD and name not in self.files:
            name = THEIR_EMBEDDING
        return self._file(self.files[name]).get_tensor(name)

    def shape(self, name: str) -> list[int]:
        return self._file(self.files[name]).get_slice(name).get_shape()

    def _file(self, path: Path) -> Any:
        if path not in self.opened:
            self.opened[path] = opened(path)
        return self.opened[path]


# --- in


def load_janus(
    source: Path | str,
    brain: BrainTokenizer | None = None,
    *,
    config: OmniConfig | None = None,
    text_length: int = 256,
    image_tokens: int | None = None,
    precision: str = "auto",
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """Janus-Pro out of a folder or from the hub, with the tokens of these brains added, which are not trained.

    brain: a trained tokenizer; without one, the model knows no brains. config: how brains and pictures enter; its sizes
    are the folder's. text_length: codes of a text that is a target. image_tokens: at most so many features of a picture
    that is a condition; None: all. precision: what weights are held in; "auto" as in the files.
    Raises UserError if the folder holds another model, or tensors are missing, left over or of other shapes.
    """
    folder = open_janus(source, text_length=text_length, image_tokens=image_tokens)
    tokenizers = janus_tokenizers(folder, brain, precision=precision, device=device)
    model = janus_model(folder, tokenizers, config or OmniConfig(image_input=JANUS), precision=precision, device=device)
    model.eval().requires_grad_(False)
    return Checkpoint(tokenizers, model, {JANUS: str(source)})


def open_janus(source: Path | str, *, text_length: int = 256, image_tokens: int | None = None) -> JanusFolder:
    """Read what a folder says and check that its tensors are those of the model it describes; weights are not read."""
    transformers_or_sentence("Janus")
    path = found(source)
    facts = read_json(path / "config.json")
    if facts.get("model_type") != JANUS:
        raise UserError(
            f"{path / 'config.json'}: expected a Janus model in the Hugging Face format (model_type '{JANUS}'), got "
            f"'{facts.get('model_type')}'. deepseek-community/Janus-Pro-1B and -7B on the hub are in this format."
        )
    from transformers import JanusConfig

    try:
        config: Any = JanusConfig.from_dict(facts)
    except Exception as error:  # the library has errors of its own for wrong types
        raise UserError(
            f"{path / 'config.json'}: expected the settings of a Janus model, got '{first_line(error)}'. "
            "Copy the folder again."
        ) from error
    check_supported(config, path)
    mean, std = colours(path)
    language, vision, vq = config.text_config, config.vision_config, config.vq_config
    decoder = {name: getattr(language, name) for name in vars(DecoderConfig()) if name not in OURS}
    pictures = {"image_size": vision.image_size, "mean": mean, "std": std}
    settings = {name: getattr(vq, name) for name in own_fields(JanusImageConfig(), but=tuple(pictures))}
    eyes = own_fields(JanusVisionConfig(), but=(*pictures, "most_tokens"))
    folder = JanusFolder(
        path,
        DecoderConfig(**decoder, rope_theta=float(language.rope_parameters["rope_theta"])),
        JanusImageConfig(**pictures, **settings | {"channel_multiplier": tuple(vq.channel_multiplier)}),
        JanusVisionConfig(**pictures, **{n: getattr(vision, n) for n in eyes}, most_tokens=image_tokens),
        text_config(path, config, text_length),
        weight_files(path),
        tied=bool(config.tie_word_embeddings),
    )
    check_tensors(folder)
    return folder


def found(source: Path | str) -> Path:
    """The folder itself, or what the hub has under this name, downloaded once."""
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"{path}: expected a folder of Janus with config.json, model.safetensors and tokenizer.json, got none "
                "called config.json. Check the path."
            )
        return path
    if path.exists() or path.is_absolute() or str(source).count("/") != 1:
        raise UserError(
            f"{source}: expected a folder of Janus, or a name on the hub such as deepseek-community/Janus-Pro-1B, got "
            "neither. Check the path."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=HUB_FILES))
    except Exception as error:  # no network, no such name, no access: the library has many kinds
        raise UserError(
            f"{source}: expected a folder, or a name that the hub can deliver, got '{first_line(error)}'. "
            "Check the path, the name and the network."
        ) from error


def check_supported(config: Any, path: Path) -> None:
    """Raises UserError for settings that Janus-Pro does not have and that are not built here."""
    language, vision, vq = config.text_config, config.vision_config, config.vq_config
    width, side = language.hidden_size, vision.image_size // vision.patch_size
    expected = {
        "text_config.model_type": (language.model_type, "llama"),
        "text_config.hidden_act": (language.hidden_act, "silu"),
        "text_config.attention_bias": (language.attention_bias, False),
        "text_config.mlp_bias": (language.mlp_bias, False),
        "text_config.head_dim": (language.head_dim * language.num_attention_heads, width),
        "text_config.rope_parameters.rope_type": (language.rope_parameters.get("rope_type", "default"), "default"),
        "vision_config.projection_dim": (vision.projection_dim, width),
        "vision_config.depth": (vision.depth, 2),
        "vision_config.num_image_tokens": (vision.num_image_tokens, side**2),
        "vq_config.projection_dim": (vq.projection_dim, width),
        "vq_config.image_token_embed_dim": (vq.image_token_embed_dim, width),
        "vq_config.num_hidden_layers": (vq.num_hidden_layers, 2),
        "vq_config.hidden_act": (vq.hidden_act, "gelu"),
        "vq_config.channel_multiplier": (side * 2 ** (len(vq.channel_multiplier) - 1), vision.image_size),
    }
    other = [f"{name} {got!r} instead of {want!r}" for name, (got, want) in expected.items() if got != want]
    if other:
        raise UserError(
            f"{path / 'config.json'}: expected settings as those of Janus-Pro, got {'; '.join(other[:MOST_NAMED])}. "
            "Such a model is not supported."
        )


def colours(path: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and spread by which pictures are standardised, each of red, green and blue."""
    settings: dict[str, Any] = {}
    for file in ("processor_config.json", "preprocessor_config.json"):
        if (path / file).is_file():
            facts = read_json(path / file)
            settings |= facts.get("image_processor", facts)
    if settings.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (settings.get(name) for name in ("image_mean", "image_std"))
    if not all(isinstance(values, list) and len(values) == 3 for values in (mean, std)):
        raise UserError(
            f"{path / 'preprocessor_config.json'}: expected image_mean and image_std, three numbers each, got "
            f"{mean} and {std}. Copy the folder again."
        )
    assert mean is not None and std is not None
    red, green, blue = map(float, mean)
    of_red, of_green, of_blue = map(float, std)
    return (red, green, blue), (of_red, of_green, of_blue)


def text_config(path: Path, config: Any, max_length: int) -> JanusTextConfig:
    """Where the special tokens are among the pieces of text. Raises UserError naming those that cannot be found."""
    tokenizer = TextTokenizer.load(path, max_length).tokenizer
    generation, named = (
        read_json(path / file) if (path / file).is_file() else {}
        for file in ("generation_config.json", "tokenizer_config.json")
    )
    named = named | (named.get("extra_special_tokens") or {})

    def code(key: str, by_number: Any) -> int | None:
        numbers = by_number if isinstance(by_number, list) else [by_number]
        if isinstance(numbers[0], int):
            return numbers[0]
        token = named.get(key, SPECIAL.get(key))
        return tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None

    def number(key: str) -> Any:
        return generation.get(key, getattr(config.text_config, key, None))

    codes = {
        "end": code("eos_token", number("eos_token_id")),
        "begin": code("bos_token", number("bos_token_id")),
        "pad": code("pad_token", number("pad_token_id")),
        "begin_of_image": code("boi_token", (generation.get("generation_kwargs") or {}).get("boi_token_id")),
        "end_of_image": code("eoi_token", None),
        "image": code("image_token", config.image_token_id),
    }
    size, pieces = config.text_config.vocab_size, tokenizer.get_vocab_size()
    missing = [name for name, value in codes.items() if value is None or not 0 <= value < size]
    if missing or pieces > size:
        what = f"none for {', '.join(missing)}" if missing else f"{pieces} pieces of text in tokenizer.json"
        raise UserError(
            f"{path}: expected special tokens for the begin, the end, padding and pictures among {size} pieces of "
            f"text, as generation_config.json and tokenizer_config.json say them, got {what}. Copy the folder again."
        )
    return JanusTextConfig(size, **{k: v for k, v in codes.items() if v is not None}, max_length=max_length)


def check_tensors(folder: JanusFolder) -> None:
    """Raises UserError naming the tensors that are missing, unknown, or of another shape than config.json says."""
    with torch.device("meta"):
        tokenizers = Tokenizers(
            BrainTokenizer(BrainTokenizerConfig(), {}),
            JanusImageTokenizer(folder.image),
            JanusTextTokenizer.read(folder.path, folder.text),
            JanusVision(folder.vision),
        )
        model = OmniModel(omni_config(folder, OmniConfig()), interface_of(tokenizers, {}))
    assert isinstance(tokenizers.image, JanusImageTokenizer) and tokenizers.vision is not None
    modules = {VQ: tokenizers.image.vq, VISION: tokenizers.vision.siglip}
    expected = {begin + name: list(v.shape) for begin, m in modules.items() for name, v in m.state_dict().items()}
    for name, value in model.state_dict().items():
        theirs = their_name(name)
        if theirs is not None:
            expected[theirs] = list(value.shape)
    expected[THEIR_EMBEDDING] = [folder.text.num_codes, folder.decoder.hidden_size]
    if folder.tied and HEAD not in folder.files:
        del expected[HEAD]
    wrong = [f"{name} is missing" for name in expected.keys() - folder.files.keys()]
    wrong += [f"{name} is unknown" for name in folder.files.keys() - expected.keys()]
    wrong += [
        f"{name} has shape {folder.shape(name)} instead of {expected[name]}"
        for name in expected.keys() & folder.files.keys()
        if folder.shape(name) != expected[name]
    ]
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise UserError(
            f"{folder.path}: expected the {len(expected)} tensors that config.json describes, got others "
            f"({'; '.join(sorted(wrong)[:MOST_NAMED])}{more}). Config and weights are of two models: fetch them again."
        )


def their_name(name: str) -> str | None:
    """What a tensor of ours is called in their files; None if Janus has none such."""
    begin = next((begin for begin in NAMES if name.startswith(begin)), None)
    return None if begin is None else NAMES[begin] + name.removeprefix(begin)


def omni_config(folder: JanusFolder, config: OmniConfig) -> OmniConfig:
    """The config of a model that is this Janus: its sizes and its forms, and how brains and pictures enter as given."""
    return replace(config, decoder=folder.decoder, text_input="codes", image_head="mlp", text_opening=False)


def janus_tokenizers(
    folder: JanusFolder,
    brain: BrainTokenizer | None = None,
    *,
    precision: str = "auto",
    device: torch.device | str = "cpu",
) -> Tokenizers:
    """Janus's tokenizers beside that of the brains. The image tokenizer is held in float32 always: it is small, and its
    codes are decided by small differences."""
    brain = brain or BrainTokenizer(BrainTokenizerConfig(), {}).eval().requires_grad_(False)
    with torch.device("meta"):
        image, vision = JanusImageTokenizer(folder.image), JanusVision(folder.vision)
    fill(image.vq, folder, VQ, torch.float32, device)
    fill(vision.siglip, folder, VISION, dtype_of(precision), device)
    text = JanusTextTokenizer.read(folder.path, folder.text)
    return Tokenizers(brain.to(device), image.to(device), text, vision.to(device))


def fill(
    module: nn.Module, folder: JanusFolder, begin: str, dtype: torch.dtype | None, device: torch.device | str
) -> None:
    """Give a module that was made without memory the tensors of its part of the files."""
    tensors = {name: folder.tensor(begin + name).to(device, dtype) for name in module.state_dict()}
    module.load_state_dict(tensors, assign=True)
    module.eval().requires_grad_(False)


# N stimuli, T tokens, C channels of features
@torch.no_grad()
def janus_model(
    folder: JanusFolder,
    tokenizers: Tokenizers,
    config: OmniConfig,
    features: Mapping[str, tuple[int, int]] | None = None,
    *,
    precision: str = "auto",
    device: torch.device | str = "cpu",
) -> OmniModel:
    """The unified model with Janus's weights. What Janus has not (brains, other features) starts as in any model, at
    the scale of Janus's embeddings; places of pictures start at zero, so that its logits are Janus's.

    features: encoder -> (tokens, channels), of those beside Janus's own.
    """
    dtype = dtype_of(precision) or folder.tensor(THEIR_EMBEDDING).dtype
    scale = float(folder.tensor(THEIR_EMBEDDING)[:ROWS_FOR_SCALE].float().std())
    config = replace(omni_config(folder, config), entry_scale=scale)
    with torch.device("meta"):
        model = OmniModel(config, interface_of(tokenizers, dict(features or {})))
    tensors: dict[str, Tensor] = {}
    for name, like in model.state_dict().items():
        theirs = their_name(name)
        if name == EMBEDDING:
            tensors[name] = embedding(folder, model, dtype, device)
        elif theirs is not None:
            tensors[name] = folder.tensor(theirs).to(device, dtype)
        else:  # a buffer's value, until it is loaded; parameters are drawn below
            make = torch.ones if name.endswith(".std") else torch.zeros
            tensors[name] = make(like.shape, dtype=dtype, device=device)
    model.load_state_dict(tensors, assign=True)
    given = {name for name in tensors if name == EMBEDDING or their_name(name) is not None}
    model.initialise(but=given | set(PLACES))
    model.brain_codebook.copy_(tokenizers.brain.quantizer.codebook)
    return model


def embedding(
    folder: JanusFolder, model: OmniModel, dtype: torch.dtype, device: torch.device | str
) -> Float[Tensor, "n d"]:
    """Control tokens, which start as those that they are in Janus, then Janus's pieces of text."""
    vocabulary, text = model.vocabulary, folder.text
    pieces = folder.tensor(THEIR_EMBEDDING)
    rows = torch.empty(vocabulary.range("text").stop, pieces.shape[1], dtype=dtype, device=device)
    rows[vocabulary.range("text").start :] = pieces
    alike = {"hidden": text.pad} | dict(model.interface.controls)
    for name in (*CONTROLS, *(f"brain:{subject}" for subject in vocabulary.subjects)):
        rows[vocabulary.control(name)] = pieces[alike.get(name, text.begin_of_image)]
    return rows


# --- prompts


# B questions, H = W pixels along a side
def janus_prompt(
    checkpoint: Checkpoint, questions: Sequence[str], pixels: Float[Tensor, "b 3 h w"] | None = None
) -> list[Block]:
    """The conditions of a reply in words, as Janus was taught: the user's turn, with a picture before the question."""
    text, vision = checkpoint.tokenizers.text, checkpoint.tokenizers.vision
    assert isinstance(text, JanusTextTokenizer) and vision is not None, "the prompts of Janus belong to Janus"
    if pixels is None:
        return [as_block(text.chat(questions))]
    seen = Block("image", vectors=vision(pixels), features=JANUS)
    return [as_block(text.user(len(questions))), seen, as_block(text.question(questions))]


def as_block(prompt: Any) -> Block:
    return Block("text", codes=prompt.codes, seen=None if bool(prompt.seen.all()) else prompt.seen)


# --- out


def save_janus(checkpoint: Checkpoint, folder: Path | str) -> None:
    """Write language model, image tokenizer and understanding encoder as `transformers` reads them; brains stay behind.

    Raises UserError if the model is not Janus, if it has learnt something of pictures that Janus has no place for, or
    if something else is in the way.
    """
    folder = Path(folder)
    image, text, vision = (getattr(checkpoint.tokenizers, name) for name in ("image", "text", "vision"))
    if not (isinstance(image, JanusImageTokenizer) and isinstance(text, JanusTextTokenizer) and vision is not None):
        raise UserError(
            f"{folder}: expected a model that began as Janus, to be written as Janus, got one with tokenizers of its "
            "own. Only runs of the recipes nsd-1b and nsd-7b, or with --janus, can be exported."
        )
    model, state = checkpoint.model, checkpoint.model.state_dict()
    learnt = [name for name in PLACES if name in state and bool(state[name].any())]
    if learnt:
        raise UserError(
            f"{folder}: expected a model whose pictures have no places of their own, as in Janus, got trained "
            f"{', '.join(learnt)}. Train with --omni.no-image-places to export it."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: expected a new or an empty folder, got one with something in it. Choose another.")
    tensors = {theirs: state[name] for name in state if (theirs := their_name(name)) is not None}
    tensors[THEIR_EMBEDDING] = state[EMBEDDING][model.vocabulary.range("text").start :]
    for begin, module in ((VQ, image.vq), (VISION, vision.siglip)):
        tensors |= {begin + name: value for name, value in module.state_dict().items()}
    files = {
        "config.json": their_config(checkpoint, image.config, vision.config, text.config),
        "generation_config.json": {
            **their_tokens(text.config),
            "guidance_scale": 5,
            "generation_kwargs": {"boi_token_id": text.config.begin_of_image},
        },
        "preprocessor_config.json": {
            "image_processor_type": "JanusImageProcessor",
            "do_normalize": True,
            "image_mean": list(image.config.mean),
            "image_std": list(image.config.std),
            "size": {"height": image.config.image_size, "width": image.config.image_size},
        },
        "processor_config.json": {
            "processor_class": "JanusProcessor",
            "num_image_tokens": image.num_codes,
        },
        "tokenizer_config.json": their_tokenizer(text.tokenizer, text.config),
    }
    with written_beside(folder) as beside:
        beside.mkdir()
        held = {name: value.detach().contiguous() for name, value in tensors.items()}
        save_file(held, beside / "model.safetensors", metadata={"format": "pt"})
        text.tokenizer.save(str(beside / "tokenizer.json"))
        (beside / "chat_template.jinja").write_text(TEMPLATE)
        for name, facts in files.items():
            (beside / name).write_text(json.dumps(facts, indent=2, ensure_ascii=False))


def their_tokens(text: JanusTextConfig) -> dict[str, int]:
    return {"bos_token_id": text.begin, "eos_token_id": text.end, "pad_token_id": text.pad}


def their_config(
    checkpoint: Checkpoint, image: JanusImageConfig, vision: JanusVisionConfig, text: JanusTextConfig
) -> dict[str, Any]:
    """config.json. Ties are said to be none, as their absence would mean that there are."""
    decoder, width = checkpoint.model.config.decoder, checkpoint.model.config.decoder.hidden_size
    dtype = str(checkpoint.model.embed_tokens.weight.dtype).removeprefix("torch.")
    side = image.codes_per_side
    language = vars(decoder) | their_tokens(text)
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": JANUS,
        "dtype": dtype,
        "tie_word_embeddings": False,
        "image_token_id": text.image,
        "text_config": {
            "model_type": "llama",
            "vocab_size": text.num_codes,
            "hidden_act": "silu",
            "rope_parameters": {"rope_theta": decoder.rope_theta, "rope_type": "default"},
            "tie_word_embeddings": False,
            **language,
        },
        "vision_config": {
            "model_type": "janus_vision_model",
            "image_size": vision.image_size,
            "projection_dim": width,
            "num_image_tokens": (vision.image_size // vision.patch_size) ** 2,
            **own_fields(vision, but=("image_size", "mean", "std", "most_tokens")),
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            "projection_dim": width,
            "image_token_embed_dim": width,
            "num_patches": side,
            **own_fields(image, but=("image_size", "mean", "std")),
        },
    }


def their_tokenizer(tokenizer: Tokenizer, text: JanusTextConfig) -> dict[str, Any]:
    """tokenizer_config.json: what the special tokens are called."""
    names = {
        "bos_token": text.begin,
        "eos_token": text.end,
        "pad_token": text.pad,
        "image_token": text.image,
        "boi_token": text.begin_of_image,
        "eoi_token": text.end_of_image,
    }
    tokens = {name: tokenizer.id_to_token(code) for name, code in names.items()}
    extra = {name: tokens[name] for name in SPECIAL}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, "extra_special_tokens": extra}
