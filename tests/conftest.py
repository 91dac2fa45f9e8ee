"""What every test has: checked shapes, one thread, and the real recordings where they are."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: two workers with two threads each stand in their way
install_import_hook("brainjanus", "beartype.beartype")  # before brainjanus is: its annotations are checked claims

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's story takes longest: it starts first, and the other worker does the rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings, which are no part of the project."""
    folder = Path(os.environ.get("BRAINJANUS_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs real recordings: {folder} is absent; set BRAINJANUS_REAL_DATA to their folder")
    return folder


# What follows imports the package inside: the hook above has to come first.


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory):
    """A dataset that is learnt in seconds: 16 x 16 pictures of one colour on one side, captions that name both.

    Responses are linear in colour and side. The subjects have 40 and 28 sites, and training stimuli of their own beside
    shared ones; each first saw eight of them twice, as all test stimuli.
    """
    import numpy as np

    from brainjanus.core.space import BrainSpace
    from brainjanus.data.dataset import Stimuli, Subject, Trials
    from brainjanus.data.write import write_dataset

    rng = np.random.default_rng(0)
    colours = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (230, 230, 230)}
    num_train, num_test = 64, 16
    ids = [f"s{i:03}" for i in range(num_train + num_test)]
    colour, side = np.arange(len(ids)) % 4, np.arange(len(ids)) // 4 % 2
    pixels = np.full((len(ids), 16, 16, 3), 90)
    for i in range(len(ids)):
        pixels[i, :, slice(0, 8) if side[i] == 0 else slice(8, 16)] = list(colours.values())[colour[i]]
    pixels = (pixels + rng.integers(-20, 20, pixels.shape)).astype(np.uint8)
    captions = {s: [f"{list(colours)[c]} {('left', 'right')[w]}"] for s, c, w in zip(ids, colour, side, strict=True)}
    facts = np.concatenate([np.eye(4)[colour], np.eye(2)[side]], axis=1)
    subjects = []
    for name, sites, first in (("s1", 40, 0), ("s2", 28, 16)):
        train, test = np.arange(first, first + 48), np.arange(num_train, len(ids))
        shown = np.concatenate([train, test, train[:8], test])
        responses = facts[shown] @ rng.standard_normal((6, sites)) + 0.4 * rng.standard_normal((len(shown), sites))
        split = ["train" if i < num_train else "test" for i in shown]
        repeat = (np.arange(len(shown)) >= 64).astype(np.int64)
        trials = Trials([ids[i] for i in shown], np.zeros_like(repeat), np.zeros_like(repeat), repeat, split)
        space = BrainSpace(
            name, sites, coordinates_mm=rng.standard_normal((sites, 3)) * 30, rois={"V1": np.arange(sites) < 10}
        )
        subjects.append(Subject(space, responses.astype(np.float32), trials))
    return write_dataset(
        tmp_path_factory.mktemp("study") / "data", name="study", modality="fMRI (simulated)", subjects=subjects,
        stimuli=Stimuli(ids, pixels, captions=captions), zscore="all",
    )  # fmt: skip


@pytest.fixture
def forgotten():
    """What a test adds, and the extensions that it loads, are forgotten behind it."""
    from brainjanus.core import extensions
    from brainjanus.data.layouts import LAYOUTS
    from brainjanus.evaluate.metrics import ADDED
    from brainjanus.model.backbone import BACKBONES
    from brainjanus.tokenizers import vision
    from brainjanus.tokenizers.coder import ENCODERS
    from brainjanus.tokenizers.quantizer import QUANTIZERS

    registries: list = [LAYOUTS, ADDED, ENCODERS, QUANTIZERS, BACKBONES, vision.ADDED]
    before = [dict(registry.entries) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.entries = entries
    extensions._loaded.clear()


@pytest.fixture(scope="session")
def fused_attention() -> dict:
    """For `FlopCounterMode`: torch does not count its fused attention on a CPU: two products forward, and for each of
    these two backward."""
    from math import prod

    import torch

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: 4 * prod(q) * k[2],
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, *__, **___: 8 * prod(q) * k[2],
    }


@pytest.fixture(scope="session")
def read_log():
    """A function that returns the lines of a training log, but for what differs from run to run: how fast it went."""
    import json

    def read(path: Path) -> list[dict]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        speed = ("steps_per_sec", "tokens_per_sec", "share_of_peak")
        return [{name: value for name, value in line.items() if name not in speed} for line in lines]

    return read


@pytest.fixture(scope="session")
def interrupting():
    """A function that makes of `fit` one that gets Ctrl-C in the middle of the step `at` of a stage."""
    import os
    import signal
    from dataclasses import replace

    def wrap(fit, at: int, stage: str = ""):
        def stopped(net, steps, *rest, **more):
            calls = []

            def losses(*arguments):
                if len(calls) == at:
                    os.kill(os.getpid(), signal.SIGINT)
                calls.append(at)
                return steps.losses(*arguments)

            return fit(net, replace(steps, losses=losses) if stage in more["stage"] else steps, *rest, **more)

        return stopped

    return wrap


@pytest.fixture(scope="session")
def make_checkpoint():
    """A function that returns an untrained checkpoint with decided opinions: subjects a (10 sites) and b (8), 4 sites
    a patch; 8 x 8 pictures of 4 codes; short captions. stages: codes of a patch, residual if more than one."""
    from dataclasses import replace

    import torch

    from brainjanus.model.checkpoint import Checkpoint, Tokenizers, interface_of
    from brainjanus.model.decoder import DecoderConfig
    from brainjanus.model.omni import OmniConfig, OmniModel
    from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
    from brainjanus.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
    from brainjanus.tokenizers.patch import PatchConfig
    from brainjanus.tokenizers.quantizer import QuantizerConfig
    from brainjanus.tokenizers.text import TextTokenizer, TextTokenizerConfig
    from brainjanus.tokenizers.vision import wavelet

    def make(
        *,
        brain_input: str = "latents",
        image_input: str = "wavelet",
        text_input: str = "codes",
        num_codes: int = 6,
        stages: int = 1,
        modalities: bool = True,
    ) -> Checkpoint:
        torch.manual_seed(0)
        quantizer = QuantizerConfig(num_codes=num_codes, dim=4)
        of_brains = replace(quantizer, kind="residual" if stages > 1 else "vq", similarity="euclidean", stages=stages)
        orders = {"a": torch.randperm(10), "b": torch.randperm(8)}
        patch = PatchConfig(width=8, depth=1, heads=2)
        brain = BrainTokenizer(BrainTokenizerConfig(patch_size=4, patch=patch, quantizer=of_brains), orders)
        for parameter in brain.parameters():
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
        for subject in brain.subjects:
            brain.solve(subject, torch.randn(50, brain.num_sites(subject)), torch.zeros(0, brain.num_sites(subject)))
        image = text = None
        features = {}
        if modalities:
            image = ImageTokenizer(ImageTokenizerConfig(8, 2, width=8, blocks=1, quantizer=quantizer))
            text = TextTokenizer.fit(["a red cup", "a blue one", "one"], TextTokenizerConfig(num_codes=262))
            tokens, channels = wavelet(torch.zeros(1, 3, 8, 8)).shape[1:]
            sizes = {image_input: (tokens, channels), text_input: (2, 7)}
            features = {name: size for name, size in sizes.items() if name != "codes"}
        decoder = DecoderConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
        )
        tokenizers = Tokenizers(brain, image, text)
        model = OmniModel(OmniConfig(decoder, brain_input, image_input, text_input), interface_of(tokenizers, features))
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
        model.load_codebooks(image.quantizer.codebook if image else model.image_codebook, brain.quantizer.codebook)
        for module in (brain, image, model):
            if module is not None:
                module.eval().requires_grad_(False)
        return Checkpoint(tokenizers, model, {"dataset": "none", "fingerprint": "0" * 64, "seed": 0})

    return make


@pytest.fixture(scope="session")
def janus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Janus with decided opinions, as `transformers` writes it: 16 x 16 pictures of 16 codes, 16 features."""
    import json

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import (
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
    )

    folder = tmp_path_factory.mktemp("janus") / "tiny"
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "boi_token": "<begin_of_image>"}
    special |= {"eoi_token": "<end_of_image>", "image_token": "<image_placeholder>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    pieces = [*special.values(), "<|User|>", "<|Assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=pieces, initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(["a red cup", "what is this?", "white left", "blue right"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    text = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    vision = JanusVisionConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4, projection_dim=32,
        num_image_tokens=16, mlp_ratio=2.0,
    )  # fmt: skip
    vq = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=24, latent_channels=16, base_channels=32, channel_multiplier=[1, 1, 2],
        num_res_blocks=1, projection_dim=32, image_token_embed_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    config = JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, image_token_id=5, tie_word_embeddings=False
    )
    model = JanusForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        table = model.model.vqmodel.quantize.embedding.weight
        table.copy_(torch.nn.functional.normalize(table, dim=-1))
    model.save_pretrained(folder)
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "generation_kwargs": {"boi_token_id": 3}}
    (folder / "generation_config.json").write_text(json.dumps(tokens))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    colours = {"image_processor_type": "JanusImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours | {"size": {"height": 16, "width": 16}}))
    return folder


@pytest.fixture(scope="session")
def tiny_settings(study) -> dict:
    """Of a run on the study of two steps a stage, as a config file has them."""
    few = {"steps": 2, "batch_size": 4}
    decoder = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "brain_tokenizer": {"patch_size": 8, "patch": {"width": 8, "depth": 0, "heads": 1}},
        "brain_training": few,
        "image_tokenizer": {"image_size": study.image_size, "codes_per_side": 2, "width": 8, "blocks": 0},
        "image_training": few,
        "omni": {"decoder": decoder | {"num_key_value_heads": 2}},
        "training": {"optim": few},
    }


@pytest.fixture(scope="session")
def tiny_run(study, tiny_settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained on the study for two steps: it answers anything, badly."""
    from brainjanus.core.config import from_dict
    from brainjanus.run import RunConfig, train

    folder = tmp_path_factory.mktemp("tiny") / "run"
    train(study, folder, from_dict(RunConfig, tiny_settings))
    return folder


@pytest.fixture(scope="session")
def adapted_run(study, tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with n1 of a dataset that holds n2, too, whom it does not know."""
    import numpy as np

    from brainjanus.adapting import adapt
    from brainjanus.core.space import BrainSpace
    from brainjanus.data.dataset import Stimuli, Subject, Trials
    from brainjanus.data.write import write_dataset

    rng = np.random.default_rng(1)
    ids = list(study.stimulus_ids)
    split = ["train" if i < 64 else "test" for i in range(len(ids))]
    zeros = np.zeros(len(ids), np.int64)
    subjects = [
        Subject(
            BrainSpace(name, 30),
            rng.standard_normal((len(ids), 30)).astype(np.float32),
            Trials(ids, zeros, zeros, zeros, split),
        )
        for name in ("n1", "n2")
    ]
    folder = tmp_path_factory.mktemp("adapted")
    stimuli = Stimuli(ids, study.images(ids), captions={one: list(study.captions(one)) for one in ids})
    data = write_dataset(
        folder / "data", name="new", modality="fMRI (simulated)", subjects=subjects, stimuli=stimuli, zscore="all"
    )
    adapt(tiny_run, data, folder / "run", "n1", stimuli=16)
    return folder / "run"
