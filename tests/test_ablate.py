"""The grid of an ablation, its resumption, what it refuses, and what it writes."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from brainjanus import ablate as module
from brainjanus.ablate import (
    AblationConfig,
    Cell,
    ablate_tokenizer,
    cells_of,
    curves_of,
    row_of,
    tokenizer_of,
)
from brainjanus.core.errors import UserError
from brainjanus.core.processes import only_one
from brainjanus.data.dataset import Stimuli, Subject
from brainjanus.data.write import write_dataset
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.omni import OmniConfig
from brainjanus.recipes import RunConfig, TokenizerRunConfig
from brainjanus.run import directions_of
from brainjanus.tokenize import train_tokenizer
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.folder import load_tokenizer
from brainjanus.tokenizers.image import ImageTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.tokenizers.text import TextTokenizerConfig
from brainjanus.train.omni import OmniTrainingConfig
from brainjanus.train.optim import OptimConfig

FEW = OptimConfig(steps=4, batch_size=8, precision="float32")
BASE = TokenizerRunConfig(
    tokenizer=BrainTokenizerConfig(patch=PatchConfig(8, 1, 2), quantizer=QuantizerConfig(dim=4)), training=FEW
)
SMALL = AblationConfig(num_codes=(64,), compression=(4, 8), quantizers=("fsq",), base=BASE)


class Counting:
    """A trainer that says what it was asked for, and may be killed."""

    def __init__(self, killed_at: int = -1) -> None:
        self.asked: list[str] = []
        self.killed_at = killed_at

    def __call__(self, dataset, out, config):
        if len(self.asked) == self.killed_at:
            raise KeyboardInterrupt
        self.asked.append(out.parent.name)
        return train_tokenizer(dataset, out, config)


@pytest.fixture(scope="module")
def done(study, tmp_path_factory):
    """An ablation that is killed in its second cell and gone on with: its folder, and what was trained when."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    truth = tmp_path_factory.mktemp("truth")
    for subject in study.subjects:
        averages = study.averages(subject, "test")
        rows = np.arange(len(averages.stimulus_ids))[::-1]  # known by their ids, not by their order
        ids = json.dumps([averages.stimulus_ids[row] for row in rows])
        responses = np.ascontiguousarray(averages.responses[rows])
        save_file({"responses": responses}, truth / f"{subject}.safetensors", metadata={"stimulus_ids": ids})
    first, second = Counting(killed_at=1), Counting()
    with pytest.raises(KeyboardInterrupt):
        ablate_tokenizer(study, out, SMALL, truth, trainer=first)
    assert ablate_tokenizer(study, out, SMALL, truth, trainer=second) == out / "report.html"
    return out, truth, first.asked, second.asked


def rows_in(out) -> list[dict]:
    return json.loads((out / "ablation.json").read_text())["rows"]


# --- the grid


def test_a_cell_is_a_folder_whatever_stands_behind_a_name():
    name = Cell("mine:rank=4,file=a/b", "vq", 64, 16, 0).name
    assert name == "mine:rank=4,file=a%2Fb-vq-codes64-sites16-seed0"


def test_what_was_added_has_a_look_of_its_own():
    found = module.looks(["new", "vq", "newer"], {"vq": "blue"}, ("pink", "orange"))
    assert found == {"vq": "blue", "new": "pink", "newer": "orange"}


def test_every_combination_is_a_cell_of_its_own():
    config = AblationConfig(num_codes=(64, 256), compression=(16, 32, 64), seeds=(0, 1))
    cells = cells_of(config)
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 3 * 3 * 2
    assert Cell("patch", "fsq", 256, 64, 1) in cells


@pytest.mark.parametrize("num_codes", [64, 128, 1024])
def test_quantizers_have_equal_bits(num_codes):
    orders = {"s": torch.arange(64)}
    found = set()
    for kind in ("vq", "residual", "fsq"):
        config = tokenizer_of(Cell("patch", kind, num_codes, 16, 0), BASE.tokenizer)
        tokenizer = BrainTokenizer(config, orders)
        codes = tokenizer.encode(torch.randn(2, 64), "s")
        assert codes.shape == (2, 4)
        found.add(tokenizer.bits("s"))
    assert found == {4 * np.log2(num_codes)}


def test_the_rest_of_the_base_stays():
    base = replace(BASE.tokenizer, patch=PatchConfig(16), quantizer=QuantizerConfig(dim=8, decay=0.9, entropy=0.1))
    vq = tokenizer_of(Cell("patch", "vq", 64, 16, 0), base)
    assert (vq.patch.width, vq.patch_size, vq.quantizer.dim, vq.quantizer.decay, vq.quantizer.entropy) == (
        16,
        16,
        8,
        0.9,
        0.1,
    )
    residual = tokenizer_of(Cell("patch", "residual", 64, 16, 0), base)
    assert (residual.patch_size, residual.quantizer.stages, residual.quantizer.entropy) == (32, 2, 0.0)
    back = tokenizer_of(Cell("patch", "vq", 64, 16, 0), tokenizer_of(Cell("patch", "fsq", 64, 16, 0), base))
    assert (back.quantizer.levels, back.quantizer.dim) == ((), 3)


@pytest.mark.parametrize(
    ("sites", "quantizer", "multipliers"),
    [
        (64, "vq", (1, 2, 2, 2, 4, 4, 4)),
        (16, "vq", (1, 2, 2, 2, 4)),
        (128, "vq", (1, 2, 2, 2, 4, 4, 4, 4)),
        (32, "residual", (1, 2, 2, 2, 4, 4, 4)),
    ],
)
def test_the_paper_encoder_has_the_levels_that_the_compression_needs(sites, quantizer, multipliers):
    config = tokenizer_of(Cell("paper", quantizer, 128, sites, 0), BrainTokenizerConfig())
    assert (config.encoder, config.paper.multipliers) == ("paper", multipliers)
    assert config.patch_size == config.paper.patch_size == sites * (2 if quantizer == "residual" else 1)


def test_all_problems_of_a_grid_are_listed_before_anything_is_trained():
    with pytest.raises(UserError, match=r"^ablation: .*Correct the config\.$") as error:
        AblationConfig(
            num_codes=(100,), compression=(48,), quantizers=("vq", "fsq"), encoders=("patch", "paper"), seeds=(),
        )  # fmt: skip
    assert "seeds must be one or more different values, got []" in str(error.value)
    with pytest.raises(UserError) as error:
        AblationConfig(num_codes=(100,), compression=(48,), quantizers=("vq", "fsq"), encoders=("patch", "paper"))
    assert "patch-fsq-codes100-sites48-seed0: quantizer config: num_codes must be a power of two" in str(error.value)
    assert "paper-vq-codes100-sites48-seed0: the paper's encoder halves its input once a level" in str(error.value)
    with pytest.raises(UserError, match="model_steps must be at least 1, got 0"):
        AblationConfig(model_steps=0)
    with pytest.raises(UserError, match=r"num_codes must be one or more different values, got \[64, 64\]"):
        AblationConfig(num_codes=(64, 64))


# --- a whole ablation


def test_a_killed_ablation_goes_on_where_it_stopped(done):
    names = [cell.name for cell in cells_of(SMALL)]
    assert done[2] == names[:1]
    assert done[3] == names[1:]


def test_what_is_done_is_not_done_again_and_a_grid_may_grow(done, study, tmp_path):
    truth, out = done[1], tmp_path / "out"
    shutil.copytree(done[0], out)
    more = Counting()
    ablate_tokenizer(study, out, replace(SMALL, compression=(4, 16)), truth, trainer=more)
    assert more.asked == ["patch-fsq-codes64-sites16-seed0"]
    assert [row["compression"] for row in rows_in(out)] == [4, 16, 8]  # those of earlier grids stay in the table


def test_the_table_has_one_row_a_cell_with_what_stands_beside_it(done, study):
    out = done[0]
    with open(out / "ablation.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["quantizer"], row["compression"]) for row in rows] == [("fsq", "4"), ("fsq", "8")]
    for row, full in zip(rows, rows_in(out), strict=True):
        assert float(row["bits"]) == {"4": 6 * (10 + 7) / 2, "8": 6 * (5 + 4) / 2}[row["compression"]]  # 40, 28 sites
        assert float(row["mse.bound"]) < float(row["mse.baseline"]) < float(row["mse.floor"])
        assert float(row["voxel_r_truth.ceiling"]) == pytest.approx(1)  # the planted truth is what was measured
        assert full["voxel_r_truth"] == pytest.approx(full["voxel_r"], abs=1e-6)
        for name in ("brain->image.two_way", "brain->text.content_f1", "image->brain.voxel_r", "text->brain.voxel_r"):
            assert full[f"{name}.floor"] < full[f"{name}.ceiling"]
    measured = [
        one for one in json.loads((out / "measured.json").read_text())["downstream"] if one["metric"] == "two_way"
    ]
    assert rows_in(out)[0]["brain->image.two_way.ceiling"] == pytest.approx(np.mean([one["value"] for one in measured]))


def test_figure_and_report_are_written(done):
    out = done[0]
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "report.html").read_text()
    assert text.count("<tr>") == 1 + 2
    assert "data:image/png;base64," in text and "://" not in text  # nothing is loaded from elsewhere
    assert "$" not in text.partition("<body>")[2]


def test_rows_are_means_over_subjects_and_curves_join_codebooks_or_compressions():
    record = {"subject": "mean", "roi": None, "metric": "mse", "value": 0.5, "floor": 1.0, "baseline": None,
              "bound": 0.25, "ceiling": None}  # fmt: skip
    region = {**record, "roi": "V1", "value": 9.0}
    bits = {**record, "metric": "bits", "value": 10.0, "floor": None, "bound": None}

    def downstream(value):
        return {"downstream": [
            {"subject": s, "direction": "image->brain", "metric": "voxel_r", "value": v, "floor": 0.0, "n": 3}
            for s, v in (("a", value), ("b", 2 * value))
        ]}  # fmt: skip

    result = {"cell": Cell("patch", "vq", 64, 16, 0)._asdict(), "records": [record, region, bits], "training_sec": 1.0}
    row = row_of(result | downstream(0.2), downstream(0.4))
    assert row == {
        "encoder": "patch", "quantizer": "vq", "num_codes": 64, "compression": 16, "seed": 0, "mse": 0.5,
        "mse.floor": 1.0, "mse.bound": 0.25, "bits": 10.0, "image->brain.voxel_r": pytest.approx(0.3),
        "image->brain.voxel_r.floor": 0.0, "image->brain.voxel_r.ceiling": pytest.approx(0.6), "training_sec": 1.0,
    }  # fmt: skip
    seeds = [row, row | {"seed": 1, "mse": 0.7}]
    coarse = row | {"compression": 32, "bits": 5.0}
    ((_, points),) = curves_of([*seeds, coarse], "mse")
    assert [(p.bits, p.compression, p.values) for p in points] == [(5.0, 32, [0.5]), (10.0, 16, [0.5, 0.7])]
    large = row | {"num_codes": 256, "bits": 13.0}
    assert [len(points) for _, points in curves_of([*seeds, coarse, large], "mse")] == [2, 1]


def test_no_downstream_scores_where_they_are_not_wanted(study, tmp_path):
    config = replace(SMALL, compression=(8,), quantizers=("residual",), downstream="none")
    ablate_tokenizer(study, tmp_path / "out", config)
    (row,) = rows_in(tmp_path / "out")
    assert not [name for name in row if "->" in name or "truth" in name]  # and no truth beside this dataset
    assert row["bits"] == 6 * (6 + 4) / 2


def test_the_whole_model_as_downstream(study, tmp_path, monkeypatch):
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    run = RunConfig(
        image_tokenizer=ImageTokenizerConfig(16, 2, width=8, blocks=1, quantizer=QuantizerConfig(num_codes=8, dim=4)),
        image_training=FEW,
        text_tokenizer=TextTokenizerConfig(num_codes=270),
        omni=OmniConfig(DecoderConfig(**small, num_key_value_heads=2)),
        training=OmniTrainingConfig(replace(FEW, steps=900)),
    )
    monkeypatch.setattr(module, "fitting", lambda dataset, seed: replace(run, seed=seed))
    monkeypatch.setattr(module, "directions_of", lambda checkpoint: directions_of(checkpoint)[::2])
    config = replace(SMALL, compression=(8,), downstream="model", model_steps=3)
    ablate_tokenizer(study, tmp_path / "out", config)
    (row,) = rows_in(tmp_path / "out")
    assert {name for name in row if "->" in name and not name.endswith(".floor")} == {
        "brain->text.content_f1", "brain->text.cider", "image->brain.voxel_r", "image->brain.voxel_r_normalised",
    }  # fmt: skip
    cell = tmp_path / "out" / "cells" / "patch-fsq-codes64-sites8-seed0"
    trained = json.loads((cell / "model" / "config.json").read_text())
    assert trained["config"]["training"]["optim"]["steps"] == 3
    assert trained["tokenizer"] == load_tokenizer(cell / "tokenizer").fingerprint  # it is used as it is


# --- what is refused


def test_other_settings_and_other_data_are_refused(done, study, tmp_path):
    out, truth, *_ = done
    with pytest.raises(UserError, match=r"expected the data and the settings that this ablation was started with, got "
                       r"others \(ablation\.downstream linear -> none\)"):  # fmt: skip
        ablate_tokenizer(study, out, replace(SMALL, downstream="none"), truth)
    longer = replace(BASE, training=replace(FEW, steps=5))
    with pytest.raises(UserError, match=r"ablation\.base\.training\.steps 4 -> 5"):
        ablate_tokenizer(study, out, replace(SMALL, base=longer), truth)
    space, trials = study.space("s1"), study.trials("s1")
    other = write_dataset(
        tmp_path / "other", name="other", modality="fMRI", subjects=[Subject(space, study.responses("s1") * 2, trials)],
        stimuli=Stimuli(study.stimulus_ids, captions={"s000": ["red"]}), zscore="all",
    )  # fmt: skip
    with pytest.raises(UserError, match="truth True -> False"):
        ablate_tokenizer(study, out, SMALL)
    with pytest.raises(UserError, match="dataset study -> other"):
        ablate_tokenizer(other, out, SMALL)


def test_several_processes_and_a_second_one_are_refused(done, study, monkeypatch):
    out, truth, *_ = done
    with only_one(out / "config.json"), pytest.raises(UserError, match="got one that another process is at"):
        ablate_tokenizer(study, out, SMALL, truth)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="ablate tokenizer: expected one process, got several"):
        ablate_tokenizer(study, out, SMALL, truth)


def test_a_folder_with_something_else_is_left_alone(study, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="expected an empty or a new folder, or one that holds an ablation"):
        ablate_tokenizer(study, tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_cannot_be_started_leaves_no_folder(study, tmp_path):
    bare = write_dataset(
        tmp_path / "bare", name="bare", modality="fMRI", zscore="all", stimuli=Stimuli(study.stimulus_ids),
        subjects=[Subject(study.space("s1"), study.responses("s1"), study.trials("s1"))],
    )  # fmt: skip
    with pytest.raises(UserError, match="expected pictures, picture features or captions to decode from responses"):
        ablate_tokenizer(bare, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()
