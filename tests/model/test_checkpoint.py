"""A checkpoint loads anywhere, gives the same bits, and says what is wrong with it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.core.units import Units
from brainjanus.core.weights import save_module
from brainjanus.generate import GenerationConfig, generate
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.draft import Drafts
from brainjanus.tokenizers.text import TextTokenizer, TextTokenizerConfig

SAMPLE = GenerationConfig(estimate="sample", seed=3)


@pytest.fixture
def saved(make_checkpoint, tmp_path):
    make_checkpoint().save(tmp_path / "run")
    return tmp_path / "run"


def conditions():
    generator = torch.Generator().manual_seed(0)
    return {
        "brain:a": torch.randn(4, 10, generator=generator),
        "text": ["a cup", "one", "blue", "a red cup"],
        "image": torch.randint(256, (4, 8, 8, 3), dtype=torch.uint8, generator=generator),
    }


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"brain_input": "codes", "image_input": "codes"},
        {"modalities": False},
        {"brain_input": "sites", "stages": 2},
    ],
)
def test_what_is_saved_is_loaded_and_gives_the_same_bits(make_checkpoint, tmp_path, inputs):
    checkpoint = make_checkpoint(**inputs)
    checkpoint.save(tmp_path / "run")
    loaded = Checkpoint.load(tmp_path / "run")
    assert loaded.model.config == checkpoint.model.config
    assert loaded.model.interface == checkpoint.model.interface
    assert loaded.provenance.items() >= checkpoint.provenance.items()
    shown = conditions() if inputs.get("modalities", True) else {"brain:a": conditions()["brain:a"]}
    for target in ("brain:b", *(("text", "image") if len(shown) > 1 else ())):
        given = {name: rows for name, rows in shown.items() if name != target}
        one, other = generate(checkpoint, given, target, SAMPLE), generate(loaded, given, target, SAMPLE)
        assert one == other if target == "text" else torch.equal(one, other)


def test_orders_of_sites_are_loaded(make_checkpoint, saved):
    made, loaded = make_checkpoint().tokenizers.brain, Checkpoint.load(saved).tokenizers.brain
    assert not torch.equal(made.sites_of("a").order, torch.arange(10))
    assert torch.equal(loaded.sites_of("a").order, made.sites_of("a").order)
    assert torch.equal(loaded.site_patch("a"), made.site_patch("a"))


def test_loaded_weights_are_frozen(saved):
    checkpoint = Checkpoint.load(saved)
    for module in (checkpoint.model, checkpoint.tokenizers.brain, checkpoint.tokenizers.image):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_nothing_is_pickled(saved):
    files = {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()}
    assert files == {"model.json", "model.safetensors"} | {
        f"tokenizers/{name}" for name in ("brain.safetensors", "image.safetensors", "tokenizer.json")
    }


def test_model_json_comes_last(make_checkpoint, tmp_path, monkeypatch):
    """A checkpoint whose writing was cut short is an unfinished run, not a damaged one."""
    monkeypatch.setattr(json, "dumps", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(modalities=False).save(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "model.safetensors").exists()
    with pytest.raises(UserError, match="If its training was interrupted, run"):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizers/brain.safetensors", "tokenizers/image.safetensors"])
def test_says_that_weights_are_truncated_or_missing(saved, file):
    whole = (saved / file).read_bytes()
    for part in (whole[: len(whole) // 2], whole[:4], b""):
        (saved / file).write_bytes(part)
        with pytest.raises(UserError, match=f"{file}: expected saved weights, got .* missing or truncated"):
            Checkpoint.load(saved)
    (saved / file).unlink()
    with pytest.raises(UserError, match="missing or truncated"):
        Checkpoint.load(saved)


def test_says_that_files_of_two_runs_were_mixed(make_checkpoint, saved, tmp_path):
    make_checkpoint(num_codes=7).save(tmp_path / "other")
    (saved / "model.safetensors").write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"brain_codebook has shape \[7, 4\] instead of \[6, 4\].* two runs were mixed"):
        Checkpoint.load(saved)
    make_checkpoint(image_input="codes").save(tmp_path / "third")
    (saved / "model.safetensors").write_bytes((tmp_path / "third/model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"aligners.features:wavelet.0.mean is missing"):
        Checkpoint.load(saved)
    (tmp_path / "third/model.safetensors").write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"aligners.features:wavelet.0.mean is unknown"):
        Checkpoint.load(tmp_path / "third")


@pytest.mark.parametrize("file", ["brain", "image"])
def test_says_that_equal_shapes_are_of_two_runs(make_checkpoint, saved, file):
    tokenizers = make_checkpoint().tokenizers
    getattr(tokenizers, file).quantizer.codebook.mul_(-1)
    save_module(getattr(tokenizers, file), saved / f"tokenizers/{file}.safetensors")
    with pytest.raises(UserError, match=rf"got another in tokenizers/{file}.safetensors. The files of two runs were"):
        Checkpoint.load(saved)


def test_says_that_the_pieces_of_text_are_of_another_run(saved):
    TextTokenizer.fit(["many more words than that"] * 3, TextTokenizerConfig(num_codes=280)).save(saved / "tokenizers")
    with pytest.raises(UserError, match=r"got another in tokenizers/tokenizer.json. The files of two runs were mixed"):
        Checkpoint.load(saved)


@pytest.mark.parametrize("key", ["num_sites", "text_tokenizer", "provenance"])
def test_says_that_model_json_lacks_a_key(saved, key):
    facts = json.loads((saved / "model.json").read_text())
    del facts[key]
    (saved / "model.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=rf"model.json: expected the keys .*, got none called {key}\."):
        Checkpoint.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "pytorch"}, "expected format 'brainjanus-model', version 4, got .*pytorch"),
        ({"version": 2}, "version 4, got .*'version': 2.* another version of brainjanus: use that one, or train again"),
        ({"version": 5}, "version 4, got .*'version': 5.* another version of brainjanus"),
        ({"omni": {"layers": 3}}, "unknown key 'layers'"),
        ({"image_tokenizer": {"kind": "other"}}, "image_tokenizer: expected the kind own or janus, got 'other'"),
        ({"text_tokenizer": 7}, "text_tokenizer: expected the kind own or janus, got 'None'"),
    ],
)
def test_says_that_it_is_foreign_or_of_another_version(saved, change, message):
    facts = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps(facts | change))
    with pytest.raises(UserError, match=message):
        Checkpoint.load(saved)


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON, got"), ("[]", "version 4, got list")])
def test_says_that_model_json_is_damaged(saved, text, message):
    (saved / "model.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Checkpoint.load(saved)


def test_says_that_there_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"expected a trained run with model.json, got none"):
        Checkpoint.load(tmp_path / "nowhere")


def with_spaces(checkpoint, sites=10):
    space, units = BrainSpace("a", sites, rois={"V1": np.arange(sites) < 3}), Units(np.ones(sites), np.ones(sites), 2)
    return replace(checkpoint, spaces={"a": space}, units={"a": units})


def test_spaces_and_units_of_the_subjects_are_loaded(make_checkpoint, tmp_path):
    with_spaces(make_checkpoint(modalities=False)).save(tmp_path / "run")
    loaded = Checkpoint.load(tmp_path / "run")
    assert loaded.spaces["a"].rois["V1"].tolist() == [True] * 3 + [False] * 7
    assert loaded.units["a"].dropped == 2


def test_says_that_a_space_is_of_another_run(make_checkpoint, tmp_path):
    with_spaces(make_checkpoint(modalities=False), sites=9).save(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"spaces/a: expected the 10 sites of a .* got 9, .* files of two runs were mixed"
    ):
        Checkpoint.load(tmp_path / "run")


def with_drafts(checkpoint, seed=0):
    torch.manual_seed(seed)
    drafts = Drafts({"a": (10, 3), "b": (8, 2)}, [("a", "b")])
    for value in drafts.buffers():
        value.copy_(torch.rand(value.shape) + 0.2)
    return replace(checkpoint, drafts=drafts)


def test_drafts_are_loaded_to_the_bit(make_checkpoint, tmp_path):
    checkpoint = with_drafts(make_checkpoint())
    checkpoint.save(tmp_path / "run")
    loaded = Checkpoint.load(tmp_path / "run").drafts
    assert (loaded.ranks, loaded.pairs) == (checkpoint.drafts.ranks, checkpoint.drafts.pairs)
    for name, value in checkpoint.drafts.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_says_that_drafts_are_of_another_run_or_model_json_of_nothing_known(make_checkpoint, tmp_path):
    with_drafts(make_checkpoint()).save(tmp_path / "run")
    path = tmp_path / "run" / "model.json"
    facts = json.loads(path.read_text())
    other = Drafts({"a": (9, 3), "b": (8, 2)}, [("a", "b")])
    save_module(other, tmp_path / "run" / "drafts.safetensors")
    path.write_text(json.dumps(facts | {"drafts": {"ranks": other.ranks, "pairs": other.pairs}}))
    with pytest.raises(UserError, match=r"drafts.safetensors: expected drafts of the run's subjects, got others"):
        Checkpoint.load(tmp_path / "run")
    for change in ({"num_sites": None}, {"drafts": {}}):
        path.write_text(json.dumps(facts | change))
        with pytest.raises(UserError, match=r"model.json: expected what a trained run says of itself, got something"):
            Checkpoint.load(tmp_path / "run")
