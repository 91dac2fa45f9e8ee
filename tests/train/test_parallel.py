"""Two processes come to what one comes to, whichever way they share the work; a state of either goes on in the other.

One process is started, and forks the others: see parallel_script.py.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from brainjanus.core.errors import UserError
from brainjanus.train import parallel
from brainjanus.train.parallel import Hardware


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_checkpoint):
    """The folder of all trainings, which are done once for all workers of the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "parallel"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "checkpoint").exists():
            make_checkpoint().save(folder / "checkpoint")
            script = Path(__file__).with_name("parallel_script.py")
            environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
            with (folder / "said").open("w") as said:
                subprocess.run([sys.executable, script, folder], env=environment, stderr=said, timeout=240)
    assert (folder / "ended.json").exists(), (folder / "said").read_text()[-4000:]
    return folder


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def facts(folder, phase, role):
    return json.loads((folder / f"facts-{phase}_phase-{role}.json").read_text())


def assert_same(folder, name, other, near=1e-5):
    """Losses of each step, and the weights in the end."""
    own, others = log(folder / name), log(folder / other)
    assert [(line["step"], line.get("split")) for line in own] == [(line["step"], line.get("split")) for line in others]
    for key in ("loss", "odd"):
        expected = [line[key] for line in others if key in line]
        assert [line[key] for line in own if key in line] == pytest.approx(expected, rel=near, abs=near)
    weights, expected = (load_file(f"{folder / which}.safetensors") for which in (name, other))
    assert weights.keys() == expected.keys()
    for key in weights:
        if key != "steps":  # a batch that is taken a part at a time counts more of them
            assert torch.allclose(weights[key].float(), expected[key].float(), rtol=near, atol=near), key
            assert weights[key].dtype == expected[key].dtype


def test_all_of_it_ended_as_it_should(trained):
    assert json.loads((trained / "ended.json").read_text()) == {"first": [0, 0, 0], "second": [0, 0, 0], "last": [2, 3]}


def test_the_trainings_differ(trained):
    """Or the comparisons below would say little."""
    names = ("one-adamw", "one-muon", "one-frozen", "one-half")
    ends = [log(trained / name)[-1]["loss"] for name in names]
    assert len(set(ends)) == len(ends)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_come_to_what_one_comes_to(trained, kind, optimizer):
    assert_same(trained, f"{kind}-{optimizer}", f"one-{optimizer}")


@pytest.mark.parametrize("which", ["ddp-omni", "fsdp-lora", "fsdp-omni-half", "fsdp-lora-half"])
def test_the_unified_model_is_trained_to_the_same(trained, which):
    """And says the same under way, its frozen matrices held in half precision where that is computed in."""
    kind, _, name = which.partition("-")
    half = name.endswith("half")
    own, others = log(trained / f"{kind}-{name}"), log(trained / f"one-{name}")
    assert len(own) == 4
    for line, expected in zip(own, others, strict=True):
        losses = {key: value for key, value in expected.items() if key == "loss" or "/" in key}
        near = 2e-2 if half and line["step"] > 1 else 1e-5  # gradients are rounded before they are added up
        assert {key: line[key] for key in losses} == pytest.approx(losses, rel=near)
    said, expected = facts(trained, "first", "0"), facts(trained, "first", "one")
    for step in (2, 4):
        assert len(said[f"{kind}-{name}-{step}"][0]) == 6
        if not half:  # there a word may fall to either side
            assert said[f"{kind}-{name}-{step}"] == expected[f"one-{name}-{step}"]
        held = "torch.bfloat16" if name == "lora-half" else "torch.float32"
        assert said[f"{kind}-{name}-{step}"][1] == held


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_of_a_sharded_module_the_first_alone_has_the_weights_in_the_end(trained, kind):
    found = [facts(trained, "first", role)[f"meta-{kind}-adamw"] for role in "01"]
    assert found == [False, kind == "fsdp"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_few_rows_at_a_time_come_to_the_same(trained, kind):
    assert_same(trained, f"{kind}-parts", "one-adamw")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_averages_and_what_is_frozen_come_to_the_same(trained, kind):
    assert_same(trained, f"{kind}-frozen", "one-frozen")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_layers_that_are_computed_again_come_to_the_same(trained, kind):
    assert_same(trained, f"{kind}-light", "one-adamw")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_in_half_precision_they_are_near(trained, kind):
    """Beside a frozen layer that is held in it, too."""
    assert_same(trained, f"{kind}-half", "one-half", near=1e-3)
    assert log(trained / f"{kind}-half")[0]["loss"] != log(trained / f"{kind}-adamw")[0]["loss"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_what_is_looked_at_under_way_is_the_same_and_changes_nothing(trained, kind):
    """Of a sharded module whose layers stay gathered, with averages: they are not what training goes on with."""
    assert_same(trained, f"{kind}-watched", "one-watched")
    seen = facts(trained, "first", "0")
    for name, expected in facts(trained, "first", "one").items():
        if "-watched-" in name:
            found = seen[name.replace("one", kind)]
            assert found[0] == expected[0] == "Net" and found[1] == pytest.approx(expected[1], rel=1e-5)
    assert not any("-watched-" in name for name in facts(trained, "first", "1")), "the first alone shows samples"


@pytest.mark.parametrize("name", ["ddp-to-one", "fsdp-to-one", "one-to-ddp", "one-to-fsdp", "fsdp-to-fsdp"])
def test_a_state_goes_on_in_another_number_of_processes(trained, name):
    expected = log(trained / "one-watched")
    own = [line["loss"] for line in log(trained / name)]
    assert own == pytest.approx([line["loss"] for line in expected if "split" not in line], rel=1e-5)
    for role in ("one",) if name.endswith("one") else "01":
        assert facts(trained, "second", role)[f"begins-{name}"] == 3, "none of what was done is done again"
    weights, others = (load_file(f"{trained / which}.safetensors") for which in (name, "one-watched"))
    assert all(torch.allclose(weights[key], others[key], rtol=1e-5, atol=1e-5) for key in weights)


@pytest.mark.parametrize(
    ("processes", "at_once", "rows"), [(1, 0, 10), (1, 4, 4), (3, 0, 4), (3, 2, 2), (4, 9, 3), (10, 0, 1)]
)
def test_no_more_rows_at_once_than_a_step_takes(monkeypatch, processes, at_once, rows):
    monkeypatch.setattr(parallel, "world", lambda: processes)
    assert Hardware("cpu", rows_at_once=at_once).most_at_once(10) == rows


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_that_is_asked_to_end_ends_both_with_a_saved_state(trained, kind):
    for role in "01":
        assert facts(trained, "first", role)[f"{kind}-asked"] == ["Preempted", "test is saved at step 3 of 8"]
    assert [state.name for state in (trained / f"{kind}-asked/state").iterdir()] == ["step-00000003"]


def test_each_process_writes_what_is_its_own(trained):
    files = sorted((trained / "fsdp-asked/state/step-00000003").glob("*.safetensors"))
    shapes = []
    for path in files:
        with safe_open(path, "pt") as file:
            shapes.append(file.get_slice("model.layers.0.weight").get_shape())
    assert shapes == [[3, 6], [3, 6]]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_data_of_one_that_are_no_numbers_stop_both_with_the_same_cause(trained, kind):
    said = [facts(trained, "first", role)[f"{kind}-spoiled"] for role in "01"]
    assert said[0] == said[1]
    assert "got nan at step 3. The data of this step (the loss, 1) are not finite" in said[0][1]
    assert [state.name for state in (trained / f"{kind}-spoiled/state").iterdir()] == ["step-00000003"]


def test_a_full_disk_of_one_is_the_same_sentence_in_both(trained):
    said = [facts(trained, "first", role)["full"] for role in "01"]
    assert said[0] == said[1]
    assert "got a full disk (No space left on device)" in said[0][1]
    assert list((trained / "full/state").iterdir()) == []


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_data_that_one_cannot_draw_end_both_with_a_saved_state(trained, kind):
    said = [facts(trained, "first", role)[f"{kind}-damaged"] for role in "01"]
    assert said[0] == said[1] == ["UserError", "data: expected what was there before, got others. Put them back."]
    assert [state.name for state in (trained / f"{kind}-damaged/state").iterdir()] == ["step-00000003"]


def test_one_that_is_gone_ends_both(trained):
    assert facts(trained, "last", "0")["error"].startswith("processes: expected all 2 to go on, got one that stopped")


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("rows_at_once", [0, 1, 3, 20])
def test_all_rows_are_done_once(monkeypatch, size, processes, rows_at_once):
    if processes > size:
        pytest.skip("there are more processes than rows, which is refused")
    monkeypatch.setattr(parallel, "world", lambda: processes)
    done, numbers = [], set()
    for own in range(processes):
        monkeypatch.setattr(parallel, "rank", lambda own=own: own)
        parts = [list(range(size))[rows] for rows in Hardware("cpu", rows_at_once=rows_at_once).parts(size)]
        assert all(parts), "none is empty"
        numbers.add(len(parts))
        done += [row for part in parts for row in part]
        if rows_at_once:
            assert len(parts) >= size // processes or max(map(len, parts)) <= rows_at_once
    assert sorted(done) == list(range(size))
    assert len(numbers) == 1, "all processes take as many parts, or they would wait for each other"


def test_more_processes_than_rows_are_refused(monkeypatch):
    monkeypatch.setattr(parallel, "world", lambda: 3)
    with pytest.raises(UserError, match="at least one row for each of 3 processes, got 2"):
        Hardware("cpu").parts(2)


def test_hardware_says_all_that_is_wrong():
    hardware = Hardware()
    object.__setattr__(hardware, "parallel", "tp")  # past the check of types that tests have
    object.__setattr__(hardware, "rows_at_once", -1)
    with pytest.raises(UserError, match="parallel must be ddp or fsdp, got 'tp'; rows_at_once must be at least 0"):
        hardware.__post_init__()


def test_a_skeleton_has_all_but_the_content():
    """Frozen or not, and buffers, which nobody saves."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    net[0].requires_grad_(False)
    bones = parallel.skeleton(net)
    assert all(p.is_meta for p in bones.parameters()) and not any(p.is_meta for p in net.parameters())
    assert [p.requires_grad for p in bones.parameters()] == [False, False, True, True]
    assert torch.equal(bones[1].running_var, torch.ones(2))
