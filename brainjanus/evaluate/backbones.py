"""The networks whose features the field's image metrics compare.

Enters: pictures and, in a folder, the weights of the networks. Leaves: one feature vector per picture, for
`evaluate.image`. Source: MindEye2's final evaluation (Scotti et al. 2024), whose layers and sizes stand in BACKBONES.
Pictures are resized to 256 pixels first, then to the network's size, without centre crop; float32, inference mode.
Differs: resizing is always antialiased (see `evaluate.image`); weights are loaded strictly, without running anybody's
code: SwAV's are put into torchvision's ResNet-50, as its hub entry does.

torchvision comes with no extra but `vision-metrics`, and must fit the installed torch. A network that cannot be had is
skipped with the reason; the others are still used.
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.evaluate.clip import ClipModel
from brainjanus.evaluate.image import FIRST_SIZE, WHITE, as_tensor, check_unit, resized

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HUB = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class BackboneSpec:
    """A network, the layer that is read, and how its features are scored.

    build: makes the untrained network out of torchvision.models; None for CLIP, which resizes and normalises itself.
    file: the weights' name in the user's folder, that under which torch.hub stores them; safetensors of the same stem
    do as well; CLIP's is a folder in the form of transformers. heads: parts of the file that are dropped.
    """

    title: str
    score: Literal["two_way", "distance"]
    size_px: int
    layer: str
    file: str
    url: str
    weights_name: str
    build: Callable[[Any], nn.Module] | None = None
    heads: tuple[str, ...] = ()


def _alexnet(models: Any) -> nn.Module:
    return models.alexnet(weights=None)


def _inception(models: Any) -> nn.Module:
    # what torchvision sets when it loads the weights itself; without transform_input the colours are wrong
    return models.inception_v3(weights=None, transform_input=True, aux_logits=True, init_weights=False)


def _efficientnet(models: Any) -> nn.Module:
    return models.efficientnet_b1(weights=None)


def _swav(models: Any) -> nn.Module:
    network = models.resnet50(weights=None)
    network.fc = nn.Identity()  # the file has none
    return network


_ALEXNET = "alexnet-owt-7be5be79.pth", f"{_HUB}alexnet-owt-7be5be79.pth", "torchvision AlexNet_Weights.IMAGENET1K_V1"
_INCEPTION = (
    "inception_v3_google-0cc3c7bd.pth",
    f"{_HUB}inception_v3_google-0cc3c7bd.pth",
    "torchvision Inception_V3_Weights.IMAGENET1K_V1",
)
_EFFICIENTNET = (  # MindEye2 asks for DEFAULT, which is this since torchvision 0.13
    "efficientnet_b1-c27df63c.pth",
    f"{_HUB}efficientnet_b1-c27df63c.pth",
    "torchvision EfficientNet_B1_Weights.IMAGENET1K_V2",
)
_SWAV = (
    "swav_800ep_pretrain.pth.tar",
    "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
    "SwAV ResNet-50, 800 epochs",
)
_CLIP = "clip-vit-large-patch14", "openai/clip-vit-large-patch14", "OpenAI ViT-L/14"

BACKBONES: Mapping[str, BackboneSpec] = {
    "alexnet2": BackboneSpec("AlexNet(2)", "two_way", 256, "features.4", *_ALEXNET, _alexnet),
    "alexnet5": BackboneSpec("AlexNet(5)", "two_way", 256, "features.11", *_ALEXNET, _alexnet),
    "inception": BackboneSpec("Inception-v3", "two_way", 342, "avgpool", *_INCEPTION, _inception),
    "clip": BackboneSpec("CLIP", "two_way", 224, "image embedding", *_CLIP),
    "effnet": BackboneSpec("EfficientNet-B1", "distance", 255, "avgpool", *_EFFICIENTNET, _efficientnet),
    "swav": BackboneSpec("SwAV", "distance", 224, "avgpool", *_SWAV, _swav, ("projection_head", "prototypes")),
}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network that is ready. definition: for the protocol: network, layer, resizing, weights and their sha256."""

    name: str
    spec: BackboneSpec
    definition: str
    embed: Callable[[Tensor], Tensor]  # pictures of 256 pixels in [0, 1], [b 3 256 256] -> features [b d]
    device: torch.device


class Available(NamedTuple):
    """The networks that can be used, and for each of the others one sentence that says why not."""

    backbones: dict[str, Backbone]
    skipped: dict[str, str]


def available(
    weights: Path | str | None = None, names: Iterable[str] = tuple(BACKBONES), device: torch.device | str = "cpu"
) -> Available:
    """Load the networks whose weights are in the folder, or on the hub (downloaded once) if no folder is given.

    All of them take 2.5 GB, most of which is CLIP's; `load` makes one.
    """
    backbones: dict[str, Backbone] = {}
    skipped = {}
    for name in names:
        try:
            backbones[name] = load(name, weights, device)
        except UserError as error:
            skipped[name] = str(error)
    return Available(backbones, skipped)


def load(name: str, weights: Path | str | None = None, device: torch.device | str = "cpu") -> Backbone:
    """Load one network of BACKBONES. weights: a folder with its file (`BackboneSpec.file`); None is the hub.

    Raises UserError if there is no such network, torchvision is absent or does not fit torch, the file is absent,
    cannot be downloaded, is no checkpoint, or has other tensors than the network.
    """
    if name not in BACKBONES:
        raise UserError(f"backbone '{name}': expected one of {', '.join(BACKBONES)}. Is it a typing error?")
    spec, device = BACKBONES[name], torch.device(device)
    if spec.build is None:
        embed, source = _load_clip(spec, weights, device)
    else:
        network = spec.build(_torchvision_models(spec))
        file = _downloaded(spec) if weights is None else _found(spec, Path(weights))
        _load_strictly(network, _tensors(file), file, spec.heads)
        embed, source = _hooked(network.eval().requires_grad_(False).to(device), spec), file
    definition = (
        f"{spec.title} {spec.layer}, pictures to {FIRST_SIZE} then {spec.size_px} px (bilinear, antialiased, no crop), "
        f"{spec.weights_name}, {source.name} sha256 {_sha256(source)}"
    )
    return Backbone(name, spec, definition, embed, device)


# N pictures, D features
@torch.inference_mode()
def features(backbone: Backbone, pictures: Shaped[np.ndarray, "n h w 3"], batch: int = 32) -> Float[np.ndarray, "n d"]:
    """Features of pictures in 8-bit units, [0, 255], flattened; float32 throughout, on the backbone's device.

    Raises UserError if the pictures are floats in [0, 1] or hold NaN.
    """
    check_unit(backbone.spec.title, [pictures])
    out: np.ndarray | None = None
    on_gpu = backbone.device.type == "cuda"
    # TF32, the default of convolutions there, rounds to 10 bits
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if on_gpu else nullcontext()
    with exact, torch.autocast(backbone.device.type, enabled=False):
        for start in range(0, len(pictures), batch):
            some = as_tensor(pictures[start : start + batch]).to(backbone.device) / WHITE
            found = backbone.embed(resized(some, FIRST_SIZE, FIRST_SIZE)).float().cpu().numpy()
            if out is None:
                out = np.empty((len(pictures), found.shape[1]), np.float32)
            out[start : start + batch] = found
    return np.empty((0, 0), np.float32) if out is None else out


def _hooked(network: nn.Module, spec: BackboneSpec) -> Callable[[Tensor], Tensor]:
    """Run the network and return what leaves its layer, before a later one changes it in place."""
    kept: list[Tensor] = []
    network.get_submodule(spec.layer).register_forward_hook(
        lambda _, __, output: kept.append(output.flatten(1).clone())
    )

    def embed(pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        mean, std = (pictures.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        kept.clear()
        network((resized(pictures, spec.size_px, spec.size_px) - mean) / std)
        return kept.pop()

    return embed


def _load_clip(
    spec: BackboneSpec, weights: Path | str | None, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], Path]:
    folder = _downloaded_clip(spec) if weights is None else Path(weights) / spec.file
    if not folder.is_dir():
        raise UserError(
            f"{spec.title}: expected the folder {folder} with a transformers checkpoint, got nothing there. Save "
            f"{spec.url} in it, or score without this metric."
        )
    model = ClipModel.load(folder, str(device))

    def embed(pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return torch.from_numpy(model.embed_resized(pictures.cpu().numpy()))

    return embed, folder


def _downloaded_clip(spec: BackboneSpec) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(
            f"{spec.title}: expected transformers, got '{error}'. Install it with "
            "pip install 'brainjanus[vision-metrics]'."
        ) from error
    try:
        return Path(hub.snapshot_download(spec.url, allow_patterns=["*.json", "*.txt", "model.safetensors"]))
    except Exception as error:  # whatever the network, the hub or the disk says
        raise _no_download(spec, spec.url, error) from error


def _torchvision_models(spec: BackboneSpec) -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError, AttributeError, OSError) as error:  # with another torch it breaks in many ways
        remedy = (
            "Install it with pip install 'brainjanus[vision-metrics]'."
            if isinstance(error, ModuleNotFoundError)
            else f"It was built for another torch than {torch.__version__}: install the version that fits it."
        )
        raise UserError(
            f"{spec.title}: expected torchvision, got '{' '.join(str(error).split())}'. {remedy}"
        ) from error


def _found(spec: BackboneSpec, folder: Path) -> Path:
    stem = spec.file.partition(".")[0]
    names = (spec.file, f"{stem}.safetensors")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{spec.title}: expected {' or '.join(names)} in {folder}, got neither. Download {spec.url} into it, or score "
        "without this metric."
    )


def _downloaded(spec: BackboneSpec) -> Path:
    """The file in torch.hub's cache; one that was cut short, or has another hash than its name says, is not kept."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / spec.file
    if not file.is_file():
        digest = re.search(r"-([0-9a-f]{8})\.", spec.file)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(spec.url, str(file), digest[1] if digest else None, progress=False)
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a wrong hash is a RuntimeError
            raise _no_download(spec, spec.url, error) from error
    return file


def _no_download(spec: BackboneSpec, url: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"{spec.title}: expected to download {url}, got '{reason}'. Without a connection, put {spec.file} into a "
        "folder and name that folder."
    )


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the prefix that distributed training leaves. Nothing else is unpickled."""
    try:
        loaded = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{file}: expected a checkpoint of tensors, got '{reason}'. Is the download complete? Fetch it again."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(
            f"{file}: expected a dictionary of tensors, got {type(loaded).__name__} with other things. Is it a "
            "training checkpoint? Take the published file."
        )
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def _load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], file: Path, heads: tuple[str, ...]) -> None:
    """Every tensor of the network comes from the file and the other way round, but for the file's `heads`.

    Old checkpoints lack BatchNorm's counters, which only training reads.
    """
    given = {name: value for name, value in tensors.items() if name.split(".")[0] not in heads}
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} {list(given[name].shape)} for {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(problems.values()):
        listed = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
        raise UserError(
            f"{file}: expected the tensors of {type(network).__name__}, got others ({listed}). Are these the weights "
            "of another network or version? Take the published file."
        )
    network.load_state_dict({**wanted, **given})


def _sha256(source: Path) -> str:
    """The first 12 digits of the file's hash; for a folder, of its weights' file."""
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()[:12]
