"""`info` says what a file or folder is, whose it is, and where it came from; one sentence on what cannot be read."""

import io
import json
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import brainjanus as bj
from brainjanus.cli import main
from brainjanus.core.errors import UserError
from brainjanus.evaluate.kept import kept
from brainjanus.evaluate.record import Predictions
from brainjanus.info import describe


def written(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_dataset_and_its_parts(study):
    found = describe(study.path)
    assert (found.kind, found.ours) == ("dataset", True)
    assert found.facts["fingerprint"] == study.fingerprint
    assert found.facts["subjects"] == "s1, s2"
    assert "brainjanus doctor" in found.advice
    kinds = {
        "dataset.json": "dataset", "stimuli.tsv": "stimuli", "images.safetensors": "pictures",
        "captions.json": "captions", "subjects/s1": "subject", "subjects/s1/responses.safetensors": "responses",
        "subjects/s1/zscore.safetensors": "z-scoring statistics", "subjects/s1/trials.tsv": "trials",
        "subjects/s1/space.safetensors": "space",
    }  # fmt: skip
    assert {name: describe(study.path / name).kind for name in kinds} == kinds


def test_a_dataset_that_was_cut_short(study, tmp_path):
    import shutil

    shutil.copytree(study.path, tmp_path / "cut")
    (tmp_path / "cut/captions.json").unlink()
    found = describe(tmp_path / "cut")
    assert "1 files are missing or cut short (captions.json)" in found.sentence


def test_a_checkpoint_and_its_parts(make_checkpoint, tmp_path):
    make_checkpoint().save(tmp_path / "run")
    found = describe(tmp_path / "run")
    assert (found.kind, found.ours) == ("run", True)
    assert found.facts["trained on"] == "none (000000000000)"
    assert found.facts["subjects"] == "a (10 sites), b (8 sites)"
    assert describe(tmp_path / "run/model.safetensors").kind == "weights"
    assert describe(tmp_path / "run/tokenizers").kind == "tokenizers of a run"


def test_a_version_that_is_not_read_is_told(make_checkpoint, tmp_path):
    make_checkpoint().save(tmp_path / "run")
    facts = json.loads((tmp_path / "run/model.json").read_text())
    written(tmp_path / "run/model.json", facts | {"version": 99})
    assert describe(tmp_path / "run").facts["version"].startswith("99, which this brainjanus does not read")


def test_a_brain_tokenizer_and_codes(make_checkpoint, tmp_path):
    from brainjanus.core.space import BrainSpace
    from brainjanus.tokenizers.folder import SavedTokenizer

    brain = make_checkpoint().tokenizers.brain
    spaces = {name: BrainSpace(name, brain.num_sites(name)) for name in brain.subjects}
    SavedTokenizer(brain, spaces, {"datasets": {"mine": "f" * 64}, "seed": 3}).save(tmp_path / "tokenizer")
    found = describe(tmp_path / "tokenizer")
    assert (found.kind, found.facts["trained on"], found.facts["seed"]) == ("brain tokenizer", f"mine ({'f' * 12})", 3)
    arrays = {"codes": np.zeros((4, 2), np.int32), "decoded": np.zeros((4, 9), np.float32)}
    (tmp_path / "codes").mkdir()
    save_file(arrays, tmp_path / "codes/a.safetensors", {"tokenizer": "abc"})
    found = describe(tmp_path / "codes/a.safetensors")
    assert (found.kind, found.facts["tokenizer"]) == ("brain codes", "abc")
    assert describe(tmp_path / "codes").kind == "brain codes"


def test_lora_units_and_states(tmp_path):
    lora = {"rank": 8, "alpha": 16, "modules": ["q_proj"]}
    save_file(
        {"a": np.zeros(2)}, tmp_path / "lora.safetensors", {"format": "brainjanus-lora", "lora": json.dumps(lora)}
    )
    assert "rank 8 (alpha 16)" in describe(tmp_path / "lora.safetensors").sentence
    units = {"mean": np.zeros(5), "std": np.ones(5), "dropped": np.array([0])}
    save_file(units, tmp_path / "units.safetensors")
    assert describe(tmp_path / "units.safetensors").kind == "units"
    written(tmp_path / "state/step-00000500/state.json", {"step": 500, "config": {"steps": 900}, "files": {}})
    assert describe(tmp_path / "state/step-00000500").sentence == "the state of a training at step 500 of 900."
    assert "the newest" in describe(tmp_path / "state").sentence


@pytest.mark.parametrize(
    ("name", "content", "kind", "ours"),
    [
        ("run/config.json", {"dataset": "d", "fingerprint": "f" * 64, "config": {}}, "settings", True),
        ("rates/tune.json", {"dataset": "d", "fingerprint": "f" * 64}, "rate search", True),
        ("scores.json", [{"direction": "brain->text", "metric": "cider", "value": 1.0, "n": 5}], "scores", True),
        ("said.json", {"a": "a dog", "b": ["a cat", "cats"]}, "captions", False),
        ("rows.json", ["a", "b"], "ids", False),
        ("coco.json", {"images": [], "annotations": []}, "COCO captions", False),
        ("log.jsonl", '{"stage": "omni", "step": 10, "loss": 2.5}\n', "training log", True),
        ("events.tsv", "onset\tduration\ttrial_type\n1\t2\tface\n", "events", False),
        ("prepare.toml", 'name = "x"\n', "settings", False),
        ("weights.pt", "x", "pickle", False),
        ("mystery.xyz", "x", "unknown", False),
        ("empty.json", "", "empty file", False),
    ],
)
def test_files_are_named(tmp_path, name, content, kind, ours):
    found = describe(written(tmp_path / name, content))
    assert (found.kind, found.ours) == (kind, ours)
    assert found.sentence.endswith(".")


def test_a_preparation_that_was_stopped_says_how_it_goes_on(tmp_path):
    written(tmp_path / ".mine.streaming/journal.json", {"version": 1, "options": {}, "study": "s", "inputs": {"a": []}})
    found = describe(tmp_path / ".mine.streaming")
    assert (found.kind, found.ours, found.facts["files read"]) == ("preparation", True, 1)
    assert str(tmp_path / "mine") in found.advice


def test_an_evaluation_that_was_stopped_says_how_it_goes_on(tmp_path):
    with suppress(KeyboardInterrupt), kept(tmp_path, {"run": [], "dataset": "f" * 64, "seed": 3}) as found:
        found.of("one", lambda: Predictions("brain->text", "s1", ("x",), "greedy", ["a cat"]))
        raise KeyboardInterrupt
    for path in (tmp_path, tmp_path / ".predictions"):
        told = describe(path)
        assert (told.kind, told.ours, told.facts["predictions"], told.facts["seed"]) == (
            "unfinished evaluation",
            True,
            1,
            3,
        )
        assert "The same `brainjanus evaluate` command goes on" in told.advice


def test_parts_and_answers_name_what_they_belong_to(make_checkpoint, tmp_path):
    make_checkpoint().save(tmp_path / "run")
    written(tmp_path / "run/codes/dataset.json", {"trials.tsv": [1, 2]})
    assert describe(tmp_path / "run/codes").sentence == "what was encoded once for training, a part of run."
    assert describe(tmp_path / "run/codes/dataset.json").ours
    asked = {"brain": "a", "run": "run"}
    request = {"format": "brainjanus-request", "version": 1, "asked": asked, "targets": ["text"], "rows": [1]}
    written(tmp_path / "out/request.json", request | {"model": "f"})
    written(tmp_path / "out/scores.json", {"a": [{"text": "x"}]})
    found = describe(tmp_path / "out/scores.json")
    assert (found.kind, found.ours) == ("predictions", True)


def test_what_others_wrote_is_named_with_what_to_do(tmp_path):
    written(tmp_path / "model/config.json", {"model_type": "dinov2"})
    assert "transformers:FOLDER" in describe(tmp_path / "model").advice
    (tmp_path / "nsd/nsddata_betas").mkdir(parents=True)
    assert (describe(tmp_path / "nsd").kind, describe(tmp_path / "nsd").ours) == ("NSD", False)
    written(tmp_path / "bids/dataset_description.json", {"Name": "x"})
    assert describe(tmp_path / "bids").kind == "BIDS"
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures/a.png")
    assert describe(tmp_path / "pictures").kind == "pictures"
    np.save(tmp_path / "betas.npy", np.zeros((3, 4), np.float32))
    assert describe(tmp_path / "betas.npy").sentence == "an array [3, 4], float32."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", b"x")
    (tmp_path / "a.zip").write_bytes(file.getvalue())
    assert "1 of them pictures" in describe(tmp_path / "a.zip").sentence


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{ not json"),
        ("dataset.json", b"[1, 2]"),
        ("model.json", b'{"format": "brainjanus-model"}'),
        ("a.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00garbage"),
        ("a.npy", b"\x93NUMPY\x01\x00garbage"),
        ("a.zip", b"PK\x03\x04garbage"),
        ("a.tsv", b"\xff\xfe\x00"),
        ("a.jsonl", b"nothing\n"),
    ],
)
def test_what_cannot_be_read_costs_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"expected .* got"):
        describe(tmp_path / name)


def test_pickled_arrays_are_never_opened(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError):
        describe(tmp_path / "objects.npy")


def test_the_command(study, tmp_path, capsys):
    assert main(["info", str(study.path)]) == 0
    assert study.fingerprint in capsys.readouterr().out
    assert main(["info", str(study.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "dataset"
    assert main(["info", str(tmp_path / "nothing")]) == 2
    assert bj.describe(study.path).ours


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        ({"model_type": "janus"}, "Give it to `--janus`."),
        ({"model_type": "multi_modality"}, "deepseek-community/Janus-Pro-1B"),
        ({"architectures": ["MultiModalityCausalLM"]}, "deepseek-community/Janus-Pro-1B"),
        ({"model_type": "vit"}, "transformers:FOLDER"),
    ],
)
def test_says_which_models_of_others_are_read(tmp_path, facts, advice):
    """Janus in its authors' own format is what `--janus` refuses."""
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert advice in describe(tmp_path).advice
