"""torchvision is absent where the tests run: a small stand-in has its layers' names, and one test the real thing."""

import hashlib
import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from brainjanus.core.errors import UserError
from brainjanus.evaluate import backbones
from brainjanus.evaluate.backbones import BACKBONES, available, features, load

WITHOUT_CLIP = [name for name in BACKBONES if name != "clip"]
SIZES = {"alexnet2": 256, "alexnet5": 256, "inception": 342, "effnet": 255, "swav": 224}
LAYERS = {"alexnet2": 4, "alexnet5": 11}  # of AlexNet's features; the others are read at avgpool


class AlexNet(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 4, 5, stride=40), nn.ReLU(inplace=True)]
        layers += [layer for _ in range(5) for layer in (nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))]
        self.features, self.classifier = nn.Sequential(*layers, nn.MaxPool2d(2)), nn.Dropout(0.5)

    def forward(self, x):
        self.seen = x
        return self.classifier(self.features(x).flatten(1))


class Pooled(nn.Module):
    """Any of the others: convolution, normalisation, avgpool, and a head behind it."""

    def __init__(self, head="fc", **told):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 5, stride=40), nn.BatchNorm2d(6)
        self.avgpool, self.told = nn.AdaptiveAvgPool2d(1), told
        self.head = head
        setattr(self, head, nn.Linear(6, 2))

    def forward(self, x):
        self.seen = x
        return getattr(self, self.head)(self.avgpool(self.norm(self.conv(x))).flatten(1))


@pytest.fixture
def made(monkeypatch):
    """Every network that is built while the stand-in is in torchvision's place."""
    networks = []

    def builder(kind, head="fc"):
        def build(*, weights, **told):
            assert weights is None
            networks.append(kind() if kind is AlexNet else kind(head, **told))
            return networks[-1]

        return build

    models = ModuleType("torchvision.models")
    models.alexnet, models.inception_v3, models.resnet50 = builder(AlexNet), builder(Pooled), builder(Pooled)
    models.efficientnet_b1 = builder(Pooled, "classifier")
    package = ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return networks


def jolted(network, seed=0):
    """With statistics of normalisation that change something."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.dtype.is_floating_point:
            value.copy_(torch.randn(value.shape, generator=generator))
            if name.endswith("var"):
                value.abs_()
    return network.eval()


def swav_file(network):
    tensors = {f"module.{name}": value for name, value in network.state_dict().items() if not name.startswith("fc")}
    return {**tensors, "module.projection_head.0.weight": torch.ones(2), "module.prototypes.weight": torch.ones(2)}


@pytest.fixture
def weights(tmp_path):
    """The published files' names, with the stand-in's tensors; and what the networks were."""
    references = {
        "alexnet2": jolted(AlexNet(), 1), "inception": jolted(Pooled(), 2), "effnet": jolted(Pooled("classifier"), 3),
        "swav": jolted(Pooled(), 4),
    }  # fmt: skip
    for name, network in references.items():
        tensors = swav_file(network) if name == "swav" else network.state_dict()
        torch.save(tensors, tmp_path / BACKBONES[name].file)
    return SimpleNamespace(folder=tmp_path, references={**references, "alexnet5": references["alexnet2"]})


def pictures(count=3, size=(256, 256)):
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3)).astype(np.uint8)


def prepared(given, size):
    """Resized to 256, then to the network's size, then normalised."""
    tensor = torch.from_numpy(given).permute(0, 3, 1, 2) / 255
    for side in (256, size):
        tensor = torch.nn.functional.interpolate(tensor, (side, side), mode="bilinear", antialias=True)
    return (tensor - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]


@pytest.mark.parametrize("name", WITHOUT_CLIP)
def test_features_are_those_of_the_layer(made, weights, name):
    backbone = load(name, weights.folder)
    given = pictures(5, (100, 300))
    found = features(backbone, given, batch=2)
    assert found.dtype == np.float32 and found.std() > 0
    network = weights.references[name]
    with torch.no_grad():
        x = prepared(given, SIZES[name])
        if name.startswith("alexnet"):
            expected = network.features[: LAYERS[name] + 1](x)
        else:
            expected = network.avgpool(network.norm(network.conv(x)))
    assert made[-1].seen.shape[-2:] == (SIZES[name], SIZES[name])
    np.testing.assert_allclose(found, expected.flatten(1).numpy(), rtol=1e-4, atol=1e-5)


def test_inception_turns_its_input_as_torchvision_does(made, weights):
    load("inception", weights.folder)
    assert made[-1].told == {"transform_input": True, "aux_logits": True, "init_weights": False}


def test_the_networks_stay_as_they_are_loaded(made, weights):
    backbone = load("effnet", weights.folder)
    first = features(backbone, pictures())
    assert not made[-1].training and not any(p.requires_grad for p in made[-1].parameters())
    np.testing.assert_array_equal(features(backbone, pictures()), first)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(features(backbone, pictures()), first)


def test_safetensors_do_as_well(made, weights):
    file = weights.folder / BACKBONES["swav"].file
    as_saved = features(load("swav", weights.folder), pictures())
    tensors = torch.load(file, weights_only=True)
    file.unlink()
    save_file(tensors, weights.folder / "swav_800ep_pretrain.safetensors")
    np.testing.assert_array_equal(features(load("swav", weights.folder), pictures()), as_saved)


def test_the_definition_has_layer_sizes_and_the_hash_of_the_weights(made, weights):
    definition = load("effnet", weights.folder).definition
    digest = hashlib.sha256((weights.folder / "efficientnet_b1-c27df63c.pth").read_bytes()).hexdigest()[:12]
    for part in ("avgpool", "255 px", "antialiased", "no crop", "EfficientNet_B1_Weights.IMAGENET1K_V2", digest):
        assert part in definition


def test_scores_of_the_field():
    kinds = {name: spec.score for name, spec in BACKBONES.items()}
    two_way = dict.fromkeys(["alexnet2", "alexnet5", "inception", "clip"], "two_way")
    assert kinds == {**two_way, "effnet": "distance", "swav": "distance"}


def test_what_is_missing_is_skipped_with_its_reason(made, weights):
    (weights.folder / BACKBONES["inception"].file).unlink()
    found, skipped = available(weights.folder)
    assert list(found) == ["alexnet2", "alexnet5", "effnet", "swav"]
    assert skipped["inception"].startswith(
        f"Inception-v3: expected inception_v3_google-0cc3c7bd.pth or inception_v3_google-0cc3c7bd.safetensors in "
        f"{weights.folder}, got neither."
    )
    assert skipped["clip"].startswith(f"CLIP: expected the folder {weights.folder / 'clip-vit-large-patch14'}")
    with pytest.raises(UserError, match="backbone 'vgg': expected one of alexnet2, alexnet5"):
        load("vgg", weights.folder)


@pytest.mark.parametrize("module", ["torchvision", "torchvision.models"])
def test_without_torchvision(monkeypatch, weights, module):
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, module, None)
    found, skipped = available(weights.folder, WITHOUT_CLIP)
    assert not found
    assert "SwAV: expected torchvision, got" in skipped["swav"]
    assert "pip install 'brainjanus[vision-metrics]'" in skipped["swav"]


def test_a_torchvision_of_another_torch(monkeypatch, weights):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(backbones.importlib, "import_module", broken)
    with pytest.raises(UserError, match=r"torchvision::nms does not exist'. It was built for another torch than \d"):
        load("swav", weights.folder)


def test_other_tensors_are_named(made, weights):
    file = weights.folder / BACKBONES["effnet"].file
    tensors = torch.load(file, weights_only=True)
    del tensors["conv.bias"]
    tensors["extra"], tensors["norm.weight"] = torch.ones(1), torch.ones(5)
    torch.save(tensors, file)
    with pytest.raises(UserError) as error:
        load("effnet", weights.folder)
    assert "(missing: conv.bias; unexpected: extra; of another shape: norm.weight [5] for [6])" in str(error.value)


def test_a_supervised_network_is_not_swav(made, weights):
    torch.save(Pooled().state_dict(), weights.folder / BACKBONES["swav"].file)
    with pytest.raises(UserError, match=r"unexpected: fc\.weight, fc\.bias\)"):
        load("swav", weights.folder)


def test_old_checkpoints_lack_the_counters_of_training(made, weights):
    file = weights.folder / BACKBONES["inception"].file
    tensors = torch.load(file, weights_only=True)
    whole = features(load("inception", weights.folder), pictures())
    torch.save({name: value for name, value in tensors.items() if "num_batches" not in name}, file)
    np.testing.assert_array_equal(features(load("inception", weights.folder), pictures()), whole)


def test_a_file_that_is_no_checkpoint(made, weights):
    file = weights.folder / BACKBONES["effnet"].file
    whole = file.read_bytes()
    for content in (b"", b"<html>404</html>", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"c27df63c\.pth: expected a checkpoint of tensors, got .* complete"):
            load("effnet", weights.folder)
    torch.save({"epoch": 3, "state_dict": {}}, file)
    with pytest.raises(UserError, match="expected a dictionary of tensors, got dict with other things"):
        load("effnet", weights.folder)
    file.rename(weights.folder / "kept")
    (weights.folder / "efficientnet_b1-c27df63c.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="expected a checkpoint of tensors"):
        load("effnet", weights.folder)


class _Spy:
    def __reduce__(self):
        return print, ("unpickled",)


def test_nothing_is_unpickled(made, weights, capsys):
    torch.save({"conv.weight": _Spy()}, weights.folder / BACKBONES["effnet"].file)
    with pytest.raises(UserError, match="expected a checkpoint of tensors"):
        load("effnet", weights.folder)
    assert capsys.readouterr().out == ""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """torch.hub's cache in a folder, and a server that is a folder too."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))

    def serve(name, content, file):
        served = tmp_path / file
        served.write_bytes(content)
        spec = backbones.BACKBONES[name]
        changed = {**vars(spec), "file": file, "url": served.as_uri()}
        monkeypatch.setattr(backbones, "BACKBONES", {name: type(spec)(**changed)})
        return tmp_path / "cache" / "checkpoints" / file

    return serve


def test_weights_are_downloaded_once(made, weights, hub):
    content = (weights.folder / BACKBONES["effnet"].file).read_bytes()
    kept = hub("effnet", content, f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth")
    first = features(load("effnet"), pictures())
    (weights.folder / kept.name).unlink()
    np.testing.assert_array_equal(features(load("effnet"), pictures()), first)


def test_a_download_that_fails_is_one_sentence(made, weights, hub):
    content = (weights.folder / BACKBONES["effnet"].file).read_bytes()
    kept = hub("effnet", content, "net-00000000.pth")
    with pytest.raises(UserError, match=r"expected to download file:.*invalid hash value"):
        load("effnet")
    assert not list(kept.parent.iterdir())
    (weights.folder / kept.name).unlink()
    with pytest.raises(UserError, match=r"EfficientNet-B1: expected to download .* put net-00000000\.pth into"):
        load("effnet")


def test_the_hub_of_clip_may_be_out_of_reach(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=unreachable))
    with pytest.raises(UserError, match="CLIP: expected to download openai/clip-vit-large-patch14, got 'no route'"):
        load("clip")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"CLIP: expected transformers, .* pip install 'brainjanus\[vision-metrics\]'"):
        load("clip")


def test_clip_gets_pictures_of_256_pixels_in_its_own_hands(monkeypatch, tmp_path):
    folder = tmp_path / BACKBONES["clip"].file
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    given = []

    class Model:
        @classmethod
        def load(cls, path, device):
            given.append((path, device))
            return cls()

        def embed_resized(self, pixels):
            given.append(pixels)
            return pixels.mean(axis=(2, 3))

    monkeypatch.setattr(backbones, "ClipModel", Model)
    backbone = load("clip", tmp_path)
    found = features(backbone, pictures(3, (512, 512)), batch=2)
    assert given[0] == (folder, "cpu") and given[1].shape == (2, 3, 256, 256)
    assert given[1].min() >= 0 and 0.8 < given[1].max() <= 1
    np.testing.assert_allclose(found, pictures(3, (512, 512)).mean(axis=(1, 2)) / 255, atol=1e-4)
    assert hashlib.sha256(b"weights").hexdigest()[:12] in backbone.definition


def test_pictures_in_the_wrong_unit(made, weights):
    backbone = load("swav", weights.folder)
    with pytest.raises(UserError, match="SwAV pictures: expected pixel values up to 255"):
        features(backbone, pictures() / 255)
    assert features(backbone, pictures()[:0]).shape[0] == 0


def test_the_real_torchvision(tmp_path):
    try:
        models = importlib.import_module("torchvision.models")
        extraction = importlib.import_module("torchvision.models.feature_extraction")
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"needs a torchvision that fits torch {torch.__version__}: {error}")
    made = {
        "alexnet2": models.alexnet(), "effnet": models.efficientnet_b1(), "swav": models.resnet50(),
        "inception": models.inception_v3(weights=None, transform_input=True, init_weights=False),
    }  # fmt: skip
    made["alexnet5"] = made["alexnet2"]
    for name, network in made.items():
        tensors = swav_file(network.eval()) if name == "swav" else network.eval().state_dict()
        torch.save(tensors, tmp_path / BACKBONES[name].file)
        if name != "swav":
            enum = models.get_weight(BACKBONES[name].weights_name.removeprefix("torchvision "))
            assert enum.url == BACKBONES[name].url
    shapes = {"alexnet2": 192 * 31 * 31, "alexnet5": 256 * 15 * 15, "inception": 2048, "effnet": 1280, "swav": 2048}
    for name, backbone in available(tmp_path, WITHOUT_CLIP).backbones.items():
        found = features(backbone, pictures(2))
        extractor = extraction.create_feature_extractor(made[name], [backbone.spec.layer], suppress_diff_warning=True)
        with torch.no_grad():
            expected = extractor(prepared(pictures(2), SIZES[name]))[backbone.spec.layer]
        assert found.shape == (2, shapes.pop(name))
        np.testing.assert_allclose(found, expected.flatten(1).numpy(), rtol=1e-4, atol=1e-4)
    assert not shapes
