"""A tokenizer in a folder: the same codes anywhere, and one sentence for whatever is wrong with it."""

import json
import shutil

import numpy as np
import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.conv import PaperConfig
from brainjanus.tokenizers.folder import SavedTokenizer, load_tokenizer
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig

EUCLIDEAN = QuantizerConfig(similarity="euclidean", num_codes=8, dim=2)
DATASETS = {"one": "1" * 64, "two": "2" * 64}


def make(seed=0, encoder="patch", quantizer=EUCLIDEAN):
    rng = np.random.default_rng(seed)
    spaces = {
        name: BrainSpace(name, sites, coordinates_mm=rng.standard_normal((sites, 3)), rois={"V1": np.arange(sites) < 4})
        for name, sites in (("a", 10), ("b", 7))
    }
    torch.manual_seed(seed)
    config = BrainTokenizerConfig(
        encoder, 4, PatchConfig(width=8, depth=1, heads=2), PaperConfig(4, (1, 1, 2), 1, 6), quantizer
    )
    tokenizer = BrainTokenizer(config, {name: torch.from_numpy(space.order) for name, space in spaces.items()})
    for name, space in spaces.items():
        tokenizer.solve(name, torch.randn(40, space.num_sites), torch.zeros(0, space.num_sites))
    return SavedTokenizer(tokenizer, spaces, {"seed": seed, "datasets": DATASETS})


@pytest.fixture
def folder(tmp_path):
    make().save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def change(folder, **facts):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize(
    ("encoder", "quantizer"),
    [
        ("patch", EUCLIDEAN),
        ("patch", QuantizerConfig(num_codes=8, dim=5)),
        ("patch", QuantizerConfig("residual", num_codes=8, dim=2, stages=2)),
        ("patch", QuantizerConfig("fsq", num_codes=16)),
        ("paper", QuantizerConfig(num_codes=8, dim=5, entropy=0.1)),
    ],
    ids=["euclidean", "cosine", "residual", "fsq", "paper"],
)
def test_what_is_saved_is_loaded_and_makes_the_same_codes(tmp_path, encoder, quantizer):
    saved = make(encoder=encoder, quantizer=quantizer)
    saved.save(tmp_path / "there")
    shutil.move(tmp_path / "there", tmp_path / "elsewhere")
    loaded = load_tokenizer(str(tmp_path / "elsewhere"))
    assert loaded.tokenizer.config == saved.tokenizer.config
    assert loaded.fingerprint == saved.fingerprint
    for subject, space in saved.spaces.items():
        x = torch.randn(5, space.num_sites)
        codes = saved.tokenizer.encode(x, subject)
        assert torch.equal(loaded.tokenizer.encode(x, subject), codes)
        with torch.no_grad():
            assert torch.equal(loaded.tokenizer.decode(codes, subject), saved.tokenizer.decode(codes, subject))
        assert torch.equal(loaded.tokenizer.site_patch(subject), saved.tokenizer.site_patch(subject))
        for field in ("order", "coordinates_mm"):
            np.testing.assert_array_equal(getattr(loaded.spaces[subject], field), getattr(space, field))
        assert list(loaded.spaces[subject].rois) == ["V1"]
    assert not loaded.tokenizer.training and not any(p.requires_grad for p in loaded.tokenizer.parameters())


def test_where_it_comes_from_is_kept(folder):
    facts = json.loads((folder / "tokenizer.json").read_text())
    assert facts["num_sites"] == {"a": 10, "b": 7} and facts["num_codes"] == {"a": 3, "b": 2}
    provenance = load_tokenizer(folder).provenance
    assert provenance.items() >= {"seed": 0, "datasets": DATASETS}.items()
    assert provenance["torch"] == torch.__version__ and "python" in provenance


def test_the_fingerprint_is_of_weights_and_orders():
    plain, turned = make(), make()
    turned.tokenizer.sites_of("a").order.copy_(turned.tokenizer.sites_of("a").order.flip(0))
    assert plain.fingerprint == make().fingerprint != make(seed=1).fingerprint
    assert turned.fingerprint != plain.fingerprint


def test_nothing_is_pickled(folder):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    of_spaces = {f"spaces/{name}/{file}" for name in "ab" for file in ("space.json", "space.safetensors")}
    assert files == {"tokenizer.json", "tokenizer.safetensors"} | of_spaces


def test_tokenizer_json_comes_last(tmp_path, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        SavedTokenizer(make().tokenizer, {}, {}).save(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "tokenizer.safetensors").exists()
    with pytest.raises(UserError, match=r"with tokenizer\.json, got none. If its training was interrupted, run"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"format": "brainjanus-model"}, "expected format 'brainjanus-brain-tokenizer', version 1, got 'brainjanus-mo"),
        ({"version": 2}, "version 1, got 'brainjanus-brain-tokenizer', version 2. It was written by another program"),
        ({"config": {"depth": 2}}, "tokenizer.json: unknown key 'depth'"),
        ({"fingerprint": "f" * 64}, r"expected the weights with the fingerprint f{12}, as tokenizer.json says, got"),
        ({"num_sites": {"a": 10}}, r"weights that tokenizer.json describes, got others \(.*brain:b.* is unknown"),
        ({"num_sites": {"a": 10, "b": 8}}, r"brain:b.order has shape \[7\] instead of \[8\]"),
    ],
)
def test_says_that_it_is_foreign_or_was_changed(folder, facts, message):
    change(folder, **facts)
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize("key", ["config", "num_sites", "provenance", "fingerprint"])
def test_says_that_a_key_is_missing(folder, key):
    facts = json.loads((folder / "tokenizer.json").read_text())
    del facts[key]
    (folder / "tokenizer.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=rf"expected the keys config, .*, got none called {key}. The file was edited"):
        load_tokenizer(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON, got"), ("[]", "settings by name, got list")])
def test_says_that_tokenizer_json_is_damaged(folder, text, message):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


def test_says_that_files_of_two_tokenizers_were_mixed(folder, tmp_path):
    make(seed=1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other/tokenizer.safetensors", folder)
    with pytest.raises(
        UserError, match=r"tokenizer.safetensors: .* The files of two tokenizers were mixed, or one was"
    ):
        load_tokenizer(folder)


def test_says_that_weights_or_a_space_are_missing_or_truncated(folder):
    weights = folder / "tokenizer.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"tokenizer.safetensors: expected saved weights, got .* missing or truncated"):
        load_tokenizer(folder)
    weights.write_bytes(whole)
    shutil.rmtree(folder / "spaces" / "b")
    with pytest.raises(UserError, match="spaces/b"):
        load_tokenizer(folder)


def test_it_is_used_with_the_data_that_it_was_trained_on():
    saved = make()
    saved.check_trained_on("one", DATASETS["one"], ["a"])
    saved.check_trained_on("renamed", DATASETS["two"], ["a", "b"])
    wanted = r"trained on the dataset 'new' \(333333333333\), got one of one \(111111111111\), two \(222222222222\)\. "
    with pytest.raises(UserError, match=wanted + ".*learnt from what is held out here: train a tokenizer on this"):
        saved.check_trained_on("new", "3" * 64, ["a"])
    with pytest.raises(UserError, match=r"or add its subjects to this one with `brainjanus train tokenizer --start`"):
        saved.check_trained_on("one", DATASETS["one"], ["a", "c"])
    with pytest.raises(UserError, match="got one of unknown data"):
        SavedTokenizer(saved.tokenizer, saved.spaces, {}).check_trained_on("one", DATASETS["one"], ["a"])


def test_says_that_the_spaces_of_two_subjects_were_mixed(folder):
    shutil.rmtree(folder / "spaces/a")
    shutil.copytree(folder / "spaces/b", folder / "spaces/a")
    with pytest.raises(UserError, match=r"spaces/a: expected the space of a with 10 sites .*, got b with 7"):
        load_tokenizer(folder)


@pytest.mark.parametrize("facts", [{"num_sites": None}, {"num_sites": {"a": -1}}, {"provenance": []}])
def test_damaged_facts_are_one_sentence(folder, facts):
    found = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(found | facts))
    with pytest.raises(UserError, match=r"expected sites by subject, datasets by name and a fingerprint, got others"):
        load_tokenizer(folder)
