"""What users add takes part like what is built in: each example is run on a small study, and what it made is looked at.

Names are taken back after each test: the other tests know nothing of them.
"""

import json
import re
import runpy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import brainjanus as bj
from brainjanus import cli
from brainjanus.ablate import AblationConfig, ablate_tokenizer
from brainjanus.core.config import from_dict
from brainjanus.core.errors import UserError
from brainjanus.core.extensions import extensions_in, load_extension, settings_in
from brainjanus.data.layouts import LAYOUTS
from brainjanus.evaluate.metrics import metric_of
from brainjanus.evaluate.report import write_report
from brainjanus.generate import GenerationConfig, generate
from brainjanus.model.backbone import BACKBONES, Backbone
from brainjanus.model.checkpoint import Checkpoint, interface_of
from brainjanus.model.decoder import Decoder, DecoderConfig
from brainjanus.model.llama import load_llama, open_llama
from brainjanus.model.omni import OmniConfig, OmniModel
from brainjanus.model.sequence import Block
from brainjanus.recipes import RunConfig, tokenizer_fitting
from brainjanus.run import Tokenized, new_model, settle
from brainjanus.tokenizers import vision
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.coder import ENCODERS
from brainjanus.tokenizers.folder import load_tokenizer
from brainjanus.tokenizers.quantizer import QUANTIZERS, QuantizerConfig

pytestmark = pytest.mark.usefixtures("forgotten")
EXAMPLES = ("reader", "metric", "tokenizer", "backbone")


@pytest.fixture
def example(project_root):
    """A function that loads an example and returns its names."""
    return lambda name: runpy.run_path(str(project_root / "examples" / f"extend_{name}.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_short(project_root, name):
    lines = (project_root / "examples" / f"extend_{name}.py").read_text().splitlines()
    assert len(lines) < 60


# --- a layout ---------------------------------------------------------------------------------------------------------


def test_reader_gives_back_what_was_planted(study, example, project_root, tmp_path, monkeypatch, capsys):
    """As a program, with the study in place of the simulated one; then the same files through the command line."""
    monkeypatch.setattr(bj, "simulate", lambda out, config: study)
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    file = project_root / "examples/extend_reader.py"
    runpy.run_path(str(file), run_name="__main__")
    assert "difference from what was written: 0.0" in capsys.readouterr().out
    LAYOUTS.entries.clear()
    argv = ["prepare", "--from", "our-lab", str(tmp_path / "lab"), "--out", str(tmp_path / "again"), "--zscore", "none"]
    argv += ["--image-size", "16"]
    assert cli.main(argv) == 2
    assert "load its file with --extend FILE" in capsys.readouterr().err
    assert cli.main([*argv, "--extend", str(file)]) == 0
    made = bj.Dataset.open(tmp_path / "again")
    assert made.manifest["provenance"]["layout"] == "our-lab"
    theirs, ours = made.trials("sub-01"), study.trials("s1")
    assert (theirs.stimulus_id, theirs.split) == (ours.stimulus_id, ours.split)
    np.testing.assert_array_equal(made.responses("sub-01"), study.responses("s1"))
    np.testing.assert_array_equal(made.space("sub-01").coordinates_mm, study.space("s1").coordinates_mm)
    ids = sorted(set(ours.stimulus_id))
    np.testing.assert_array_equal(made.images(ids), study.images(ids))


def test_added_layout_is_asked_what_the_user_asks(study, example, tmp_path):
    example("reader")["main"](study, tmp_path)
    with pytest.raises(UserError, match=r"expected subjects that are there \(sub-01\), got 'sub-02'"):
        LAYOUTS.entries["our-lab"](tmp_path / "lab", bj.StudyOptions(subjects=("sub-02",)))
    with pytest.raises(UserError, match=r"layout 'nsd': expected a name of its own.*got one that is built in"):
        bj.add_layout("nsd")(LAYOUTS.entries["our-lab"])


# --- a metric ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(study, example, tmp_path):
    names = example("metric")
    records = {(r.roi, r.metric): r for r in names["main"](study, tmp_path)}
    return records, tmp_path / "scores.json", names


def test_added_metric_has_all_that_stands_beside_a_score(scored, study):
    records, file, _ = scored
    saved = {(r.roi, r.metric): r for r in bj.load_scores(file)}
    for roi in (None, "V1"):
        for name in ("pattern_rho", "median_voxel_r"):
            record = saved[roi, name]
            assert record == records[roi, name]
            assert record.protocol.definition == metric_of(name).definition
            assert None not in (record.floor, record.constant, record.baseline, record.p)
            assert record.interval is not None
            assert record.interval[0] < record.value < record.interval[1]
            assert record.n == 16 and record.p < 0.05 and min(record.value, record.baseline) > record.floor
            assert {"floor", "baseline", "interval", "p"} <= record.protocol.beside.keys()
    assert saved[None, "pattern_rho"].ceiling is None
    ceiling = saved[None, "median_voxel_r"].ceiling
    assert ceiling == pytest.approx(np.median(study.space("s1").noise_ceiling(2)))
    assert saved["V1", "median_voxel_r"].ceiling == pytest.approx(np.median(study.space("s1").noise_ceiling(2)[:10]))
    assert saved[None, "median_voxel_r"].protocol.beside["floor"] == "mean over 200 shuffles of stimuli"
    assert saved[None, "pattern_rho"].protocol.beside["floor"] == "mean over all pairs of stimuli"


def test_value_and_floor_of_an_added_metric(scored, study):
    """Against scipy: the mean over stimuli, and over all pairs of stimuli."""
    records, _, _ = scored
    rng = np.random.default_rng(0)
    measured = study.averages("s1", "test")
    values = measured.responses + rng.standard_normal(measured.responses.shape).astype(np.float32)
    made = bj.Predictions("text->brain", "s1", measured.stimulus_ids, "noisy", values)
    found = {(r.roi, r.metric): r for r in bj.score(study, made).records}
    pairs = np.array([[spearmanr(a, b)[0] for b in values] for a in measured.responses])
    assert found[None, "pattern_rho"].value == pytest.approx(pairs.diagonal().mean())
    assert found[None, "pattern_rho"].floor == pytest.approx(pairs.mean())
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(measured.responses.T, values.T, strict=True)]
    assert found[None, "median_voxel_r"].value == pytest.approx(np.median(r))
    assert abs(found[None, "median_voxel_r"].floor) < 0.1
    # it is computed as what is built in is: rho of ranks as r of responses
    assert records[None, "pattern_rho"].direction == records[None, "pattern_r"].direction


def test_added_metrics_stand_in_the_report(scored, study, tmp_path):
    records, _, _ = scored
    write_report(tmp_path / "report.html", dataset=study, records=list(records.values()))
    page = (tmp_path / "report.html").read_text()
    assert page.count("Median voxel r") >= 2 and "Spearman's rho across sites" in page.replace("&#x27;", "'")


def test_metric_added_for_pictures_and_captions(study):
    """Both get what was shown and what was decoded; lower may be better."""

    @bj.add_metric("colour_distance", "image", "Colour", "mean colours.", "mean colour, RMS", lower=True)
    def colour_distance(seen, decoded):
        means = np.stack([group.mean(axis=(0, 1, 2)) for group in seen]) - decoded.mean(axis=(1, 2))
        return np.sqrt(np.square(means).mean(axis=1))

    @bj.add_metric("same_first_word", "text", "First word", "the first words.", "share")
    def same_first_word(said, decoded):
        return [any(a.split()[0] == b.split()[0] for a in group) for group, b in zip(said, decoded, strict=True)]

    ids = study.averages("s1", "test").stimulus_ids
    options = bj.ScoreOptions(extras=bj.Extras(java=False))
    pictures = bj.Predictions("brain->image", "s1", ids, "right", study.images(ids).astype(np.float32))
    record = next(r for r in bj.score(study, pictures, options).records if r.metric == "colour_distance")
    assert record.value == pytest.approx(0, abs=1e-4) and record.floor > 5 and record.constant > 5 and record.p < 0.01
    captions = bj.Predictions("brain->text", "s1", ids, "right", [study.captions(i)[0] for i in ids])
    record = next(r for r in bj.score(study, captions, options).records if r.metric == "same_first_word")
    assert (record.value, record.floor) == (1.0, 0.25) and record.constant == 0.25 and record.baseline > 0.5


@pytest.mark.parametrize(
    ("per_stimulus", "returned", "told"),
    [
        (True, 0.5, r"expected one finite score for each of the 16 stimuli, got shape \[\]"),
        (True, [np.nan] * 16, "got some that are not"),
        (False, [0.5] * 16, r"expected one finite number for all stimuli.*got shape \[16\]"),
        (False, np.inf, "got inf"),
    ],
)
def test_metric_that_returns_something_else_is_named(study, per_stimulus, returned, told):
    bj.add_metric("odd", "brain", "Odd", "-", "-", per_stimulus=per_stimulus)(lambda measured, predicted: returned)
    measured = study.averages("s1", "test")
    made = bj.Predictions("text->brain", "s1", measured.stimulus_ids, "mean", measured.responses)
    with pytest.raises(UserError, match=f"metric 'odd': .*{told}"):
        bj.score(study, made, bj.ScoreOptions(baseline=False))


def test_metric_needs_a_target_and_a_name_of_its_own():
    with pytest.raises(UserError, match="expected a target among brain, image, text, got 'sound'"):
        bj.add_metric("x", "sound", "X", "-", "-")
    with pytest.raises(UserError, match=r"metric 'voxel_r': expected a name of its own.*one that is built in"):
        bj.add_metric("voxel_r", "brain", "X", "-", "-")(len)
    with pytest.raises(UserError, match="metric 'a b': expected a name of its own, of small letters"):
        bj.add_metric("a b", "brain", "X", "-", "-")(len)


# --- a tokenizer ------------------------------------------------------------------------------------------------------


def test_added_tokenizer_trains_is_saved_and_loads(study, example, tmp_path, capsys):
    names = example("tokenizer")
    names["main"](study, tmp_path, steps=60)
    printed = re.findall(r"(?:voxel r|bits|response) (-?\d\.\d\d)", capsys.readouterr().out)
    kept, linear, floor = (float(number) for number in printed)
    assert kept > 0.4 and linear > 0.4 and floor == 0
    tokenizer = load_tokenizer(tmp_path / "signs").tokenizer
    assert isinstance(tokenizer.coder, names["LinearCoder"]) and isinstance(tokenizer.quantizer, names["SignQuantizer"])
    responses = torch.from_numpy(study.averages("s1", "test").responses)
    codes = tokenizer.encode(responses, "s1")
    assert codes.shape == (16, 3) and set(codes.unique().tolist()) <= set(range(64)) and len(codes.unique()) > 10
    vectors = tokenizer.quantizer.codebook[codes]
    torch.testing.assert_close(vectors.sign(), tokenizer.latents(responses, "s1").sign())  # its code says the signs
    torch.testing.assert_close(tokenizer.quantizer(vectors).codes, codes)
    for registry, told in ((ENCODERS, "encoder must be one of patch, paper"), (QUANTIZERS, "kind must be one of vq")):
        kept = dict(registry.entries)
        registry.entries.clear()
        with pytest.raises(UserError, match=f"{told}.*load its file with --extend FILE, or import it first"):
            load_tokenizer(tmp_path / "signs")
        registry.entries = kept


def test_a_model_speaks_the_codes_of_an_added_tokenizer(example, make_checkpoint, tmp_path):
    example("tokenizer")
    known = make_checkpoint()
    quantizer = QuantizerConfig("signs", num_codes=16, dim=4)
    orders = {"a": torch.arange(10), "b": torch.arange(8)}
    brain = BrainTokenizer(BrainTokenizerConfig(encoder="linear", patch_size=4, quantizer=quantizer), orders)
    for matrix in brain.coder.out.values():
        nn.init.normal_(matrix)
    tokenizers = replace(known.tokenizers, brain=brain.eval().requires_grad_(False))
    model = OmniModel(known.model.config, interface_of(tokenizers, dict(known.model.interface.features)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.load_codebooks(tokenizers.image.quantizer.codebook, brain.quantizer.codebook)
    made = Checkpoint(tokenizers, model.eval().requires_grad_(False), known.provenance)
    made.save(tmp_path / "run")
    said, pictures = {"text": ["a red cup"]}, {"image": np.zeros((1, 8, 8, 3), np.uint8)}
    for given in (said, pictures, {"brain:b": np.ones((1, 8), np.float32)}):
        predicted = [generate(checkpoint, given, "brain:a") for checkpoint in (made, Checkpoint.load(tmp_path / "run"))]
        assert predicted[0].shape == (1, 10) and bool(predicted[0].any())
        torch.testing.assert_close(*predicted)
    ENCODERS.entries.clear()
    with pytest.raises(UserError, match=r"model\.json: brain tokenizer config: encoder must be one of patch, paper"):
        Checkpoint.load(tmp_path / "run")


def test_settings_of_an_encoder_are_those_it_takes(example):
    example("tokenizer")
    orders = {"s1": torch.arange(20)}
    torch.manual_seed(0)
    plain = BrainTokenizer(BrainTokenizerConfig(encoder="linear"), orders)
    torch.manual_seed(0)
    wide = BrainTokenizer(BrainTokenizerConfig(encoder="linear:spread=2"), orders)
    torch.testing.assert_close(wide.coder.into["brain:s1"], 2 * plain.coder.into["brain:s1"])
    with pytest.raises(UserError, match=r"encoder 'linear:rank=2': expected settings that it takes, LinearCoder\(dim"):
        BrainTokenizer(BrainTokenizerConfig(encoder="linear:rank=2"), orders)
    config = BrainTokenizerConfig(encoder="linear", quantizer=QuantizerConfig("signs", num_codes=64, dim=3))
    with pytest.raises(UserError, match=r"quantizer 'signs': expected num_codes 64 and dim 6, as.*got 64 and 3\."):
        BrainTokenizer(config, orders)


def test_added_encoders_and_quantizers_are_ablated(study, example, tmp_path):
    """Each with each, beside those that are built in; what does not fit is told before anything is trained."""
    example("tokenizer")
    base = tokenizer_fitting(study).changed({"training.steps": 3, "tokenizer.quantizer.dim": 4})
    grid = AblationConfig(
        (16,), (10,), ("fsq", "signs"), ("patch", "linear:spread=0.5", "linear:spread=2"), downstream="none", base=base
    )
    page = ablate_tokenizer(study, tmp_path, grid).read_text()
    assert all(name in page for name in (">signs<", ">linear:spread=0.5<", ">linear:spread=2<"))
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert len(rows) == 6 and {row["bits"] for row in rows} == {14.0}  # 4 and 3 patches of 4 bits, means over subjects
    made = load_tokenizer(tmp_path / "cells/linear:spread=2-signs-codes16-sites10-seed0/tokenizer").tokenizer
    assert (made.config.encoder, made.config.quantizer.kind, made.config.patch_size) == ("linear:spread=2", "signs", 10)
    for changed, told in (
        ({"num_codes": (64,)}, "sites10-seed0: quantizer 'signs': expected num_codes 64 and dim 6, as.*got 64 and 4"),
        ({"encoders": ("linear:rank=2",)}, "encoder 'linear:rank=2': expected settings that it takes"),
        ({"encoders": ("lineal",)}, "encoder must be one of patch, paper, linear, got 'lineal'"),
        ({"quantizers": ("sings",)}, "kind must be one of vq, residual, fsq, signs, got 'sings'"),
    ):
        with pytest.raises(UserError, match=f"^ablation: .*{told}") as error:
            replace(grid, **changed)
        assert str(error.value).count(" must be one of ") <= 1


def test_an_added_encoder_may_be_solved(example):
    """What training responses tell reaches it, cut into patches along the cortical order."""
    coder = example("tokenizer")["LinearCoder"]
    seen = {}

    @bj.add_encoder("solving")
    class Solving(coder):
        def solve(self, subject, means, residuals, noise):
            seen[subject] = means

    order = torch.tensor([2, 0, 1])
    tokenizer = BrainTokenizer(BrainTokenizerConfig(encoder="solving", patch_size=2), {"a": order})
    tokenizer.solve("a", torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(0, 3))
    np.testing.assert_array_equal(seen["a"], [[3, 1, 2, 0]])


# --- a backbone -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gru_folder(study, project_root, tmp_path_factory):
    """The run of the example, trained for a few steps; what it adds is forgotten again."""
    folder = tmp_path_factory.mktemp("gru")
    runpy.run_path(str(project_root / "examples/extend_backbone.py"))["main"](study, folder, steps=3)
    del BACKBONES.entries["gru"], vision.ADDED.entries["colours"]
    return folder / "gru"


@pytest.fixture
def gru_run(gru_folder, example):
    """The run, and the names of the example, which are known."""
    return gru_folder, example("backbone")


def test_added_backbone_generates_and_loads(gru_run, study):
    folder, names = gru_run
    run = bj.Run.open(folder)
    assert isinstance(run.checkpoint.model.decoder, names["GRU"])
    assert run.checkpoint.model.decoder.gru.num_layers == 2
    assert run.checkpoint.model.interface.features["colours"] == (16, 3)
    drawn = GenerationConfig("sample", seed=1, num_samples=2)
    said = run.generate({"brain:s1": study.averages("s1", "test").responses[:3]}, "text", drawn)
    assert len(said) == 3
    assert run.generate({"image": study.images(study.split_ids("test"))}, "brain:s1").shape == (16, 40)
    with pytest.raises(UserError, match="accelerate: expected none for the backbone 'gru:layers=2'"):
        bj.Run.open(folder, acceleration="compile")
    BACKBONES.entries.clear()
    told = "model.json: omni config: backbone must be one of llama, got 'gru:layers=2'.*load its file with --extend"
    with pytest.raises(UserError, match=told):
        bj.Run.open(folder)


def test_run_of_an_extension_answers_on_the_command_line(gru_run, study, project_root, tmp_path, capsys):
    folder, _ = gru_run
    BACKBONES.entries.clear()
    vision.ADDED.entries.clear()
    argv = ["generate", str(folder), "--brain", "s1:test", "--to", "text", "--out", str(tmp_path / "said")]
    assert cli.main(argv) == 2
    assert "--extend FILE" in capsys.readouterr().err
    assert cli.main(["--extend", str(project_root / "examples/extend_backbone.py"), *argv]) == 0
    assert len(json.loads((tmp_path / "said/captions.json").read_text())) == 16


@torch.no_grad()
def test_steps_of_an_added_backbone_are_its_forward(gru_run):
    """Cached equals uncached, also where a condition is padded and rows are repeated."""
    model = Checkpoint.load(gru_run[0]).model
    k = model.interface.image_codes
    codes = torch.randint(0, model.vocabulary.image, (2, k))
    seen = torch.tensor([[True, True, True], [True, False, False]])
    conditions = [Block("text", codes=torch.tensor([[5, 6, 7], [5, 9, 9]]), seen=seen)]
    target = Block("image", codes=codes)
    whole = model(conditions, target)
    cache = model.start(conditions, 2, 64, target).repeat(2, 64)
    wide = replace(target, codes=codes.repeat_interleave(2, dim=0))
    for place in range(k):
        found = model.step(cache, wide, place, wide.codes[:, place - 1] if place else None)
        torch.testing.assert_close(found, whole[:, place].repeat_interleave(2, dim=0))
    alone = model([Block("text", codes=torch.tensor([[5]]))], Block("image", codes=codes[1:]))
    torch.testing.assert_close(whole[1:], alone)  # padding changes nothing


def begun(checkpoint: Checkpoint, omni: OmniConfig) -> OmniModel:
    """The model with which a training on these tokenizers begins."""
    codes = SimpleNamespace(features={})
    tokenizers, drafts = checkpoint.tokenizers, SimpleNamespace(guessed=0)
    made = Tokenized(tokenizers, tokenizers, codes, drafts, codes, None, None, "auto")
    return new_model(made, RunConfig(omni=replace(omni, sight=False)), 0)


def test_a_backbone_begins_with_weights_of_its_own_and_keeps_what_is_not_saved(make_checkpoint, tmp_path):
    class Fixed(Backbone):
        def __init__(self, config: DecoderConfig):
            super().__init__(config)
            self.mix = nn.Linear(config.hidden_size, config.hidden_size)
            self.register_buffer("two", torch.tensor(2.0), persistent=False)

        def begin(self) -> None:
            nn.init.eye_(self.mix.weight.data)

        def states(self, x, seen):
            return self.two * self.mix(x)

    bj.add_backbone("fixed")(Fixed)
    known = make_checkpoint()
    model = begun(known, replace(known.model.config, backbone="fixed", image_input="codes"))
    Checkpoint(known.tokenizers, model, known.provenance).save(tmp_path)
    decoder = Checkpoint.load(tmp_path).model.decoder
    torch.testing.assert_close(decoder.mix.weight, torch.eye(32), atol=0, rtol=0)
    assert float(decoder.two) == 2 and not decoder.two.is_meta


def test_vision_encoder_of_this_name_is_refused_without_its_extension():
    with pytest.raises(UserError, match=r"vision encoder 'colours': expected one.*if it is an extension's"):
        vision.vision_encoder("colours")


# --- a language model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama in shards, as `transformers` writes it, and itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rope_theta=5000.0, initializer_range=0.3,
    )  # fmt: skip
    model, folder = LlamaForCausalLM(config).eval(), tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder, model


@torch.no_grad()
def test_weights_of_a_mistral_give_its_states(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, sliding_window=None, initializer_range=0.3,
    )  # fmt: skip
    theirs = MistralForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    decoder = Decoder(open_llama(tmp_path).decoder).eval()
    load_llama(decoder, tmp_path)
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(decoder(x), theirs.model(inputs_embeds=x).last_hidden_state, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_of_a_llama_give_its_states(llama):
    folder, theirs = llama
    assert (folder / "model.safetensors.index.json").is_file()
    begun = open_llama(folder)
    assert (begun.decoder.hidden_size, begun.decoder.rope_theta) == (24, 5000.0)
    assert begun.entry_scale == pytest.approx(float(theirs.model.embed_tokens.weight.std()))
    decoder = Decoder(begun.decoder).eval()
    load_llama(decoder, folder)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(decoder(x), theirs.model(inputs_embeds=x).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_a_model_begins_as_a_llama_and_loads_without_it(llama, study, tiny_settings, make_checkpoint, tmp_path):
    folder, theirs = llama
    here = tmp_path / "language"
    here.symlink_to(folder)
    settings = tiny_settings | {"omni": {"backbone": f"llama:{here}", "decoder": {"dropout": 0.1}}}
    omni = settle(study, from_dict(RunConfig, settings), None).config.omni
    assert (omni.decoder.hidden_size, omni.decoder.dropout) == (24, 0.1)
    assert omni.entry_scale == pytest.approx(float(theirs.model.embed_tokens.weight.detach().std()))
    known = make_checkpoint()
    model = begun(known, replace(omni, image_input="codes"))
    assert float(model.embed_tokens.weight.detach().std()) == pytest.approx(omni.entry_scale, rel=0.1)
    Checkpoint(known.tokenizers, model, known.provenance).save(tmp_path / "run")
    here.unlink()
    own, other = Checkpoint.load(tmp_path / "run").model.decoder.state_dict(), theirs.model.state_dict()
    assert own.keys() < other.keys()
    for name, value in own.items():
        torch.testing.assert_close(value, other[name], atol=0, rtol=0)


def test_what_is_no_llama_is_refused(llama, tmp_path):
    folder, _ = llama
    with pytest.raises(UserError, match=r"expected a folder with config\.json and model\.safetensors, got none"):
        open_llama(tmp_path)
    facts = json.loads((folder / "config.json").read_text())
    for changed, told in (
        ({"model_type": "qwen2"}, "got model_type 'qwen2'"),
        ({"attention_bias": True}, "got attention_bias True"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "got rope_type 'llama3'"),
        ({"sliding_window": 4096}, "got sliding_window 4096"),
        ({"head_dim": 12}, "got head_dim 12"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(facts | changed))
        with pytest.raises(UserError, match=f"expected the settings of a Llama.*{told}.*add_backbone"):
            open_llama(tmp_path)
    deeper = Decoder(replace(open_llama(folder).decoder, num_hidden_layers=3))
    with pytest.raises(UserError, match=r"got others \(layers\.2\..* is missing"):
        load_llama(deeper, folder)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.\w+\.weight has shape \[.*\] instead of"):
        load_llama(Decoder(replace(open_llama(folder).decoder, intermediate_size=48)), folder)
    (tmp_path / "config.json").write_text(json.dumps(facts))
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"model\.safetensors: expected weights, got"):
        open_llama(tmp_path)


def test_janus_and_another_backbone_do_not_go_together():
    with pytest.raises(UserError, match=r"omni\.backbone: expected llama with Janus.*got 'llama:x'"):
        RunConfig(janus="somewhere", omni=OmniConfig(backbone="llama:x"))


# --- the file itself --------------------------------------------------------------------------------------------------


def test_extend_may_stand_anywhere():
    assert extensions_in(["--extend", "a.py", "train", "--extend=b.py", "x"]) == (["train", "x"], ["a.py", "b.py"])
    for argv in (["train", "--extend"], ["--extend", "--out", "x"]):
        with pytest.raises(UserError, match="--extend: expected a Python file behind it"):
            extensions_in(argv)


def test_extension_is_run_once_with_its_folder_at_hand(tmp_path):
    (tmp_path / "beside_it.py").write_text("NAME = 'lab-of-two-files'\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "import brainjanus as bj\nfrom beside_it import NAME\n\n\n@bj.add_layout(NAME)\n"
        "def open_study(path, options): ...\n\n\nif __name__ == '__main__':\n    raise SystemExit('run as a program')\n"
    )
    load_extension(file)
    found = LAYOUTS.entries["lab-of-two-files"]
    load_extension(tmp_path / "." / "mine.py")
    assert LAYOUTS.entries["lab-of-two-files"] is found
    for path, there in ((tmp_path / "none.py", "none there"), (tmp_path, "something else")):
        with pytest.raises(UserError, match=f"--extend .*: expected a Python file, got {there}"):
            load_extension(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\ndef f(:\n", r"expected Python, got 'invalid syntax' in line 2 of wrong\.py \(def f\(:\)"),
        ("x = 1\0\n", "expected Python, got 'source code string cannot contain null bytes'"),
        (
            "import no_such_thing_at_all\n",
            "expected all that it imports to be installed, got no 'no_such_thing_at_all'",
        ),
    ],
)
def test_what_cannot_be_read_or_is_not_installed_is_a_sentence(tmp_path, text, told, capsys):
    file = tmp_path / "wrong.py"
    file.write_text(text)
    with pytest.raises(UserError, match=f"--extend .*wrong.py: {told}"):
        load_extension(file)
    file.write_text("import brainjanus\n")
    load_extension(file)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1 / 0\n", ZeroDivisionError),
        ("import brainjanus.nothing\n", ImportError),
        ("raise ImportError\n", ImportError),
    ],
)
def test_mistakes_in_an_extension_keep_their_traceback_and_leave_nothing(tmp_path, text, error):
    file = tmp_path / "wrong.py"
    file.write_text(text)
    for _ in range(2):
        with pytest.raises(error):
            load_extension(file)


def test_settings_behind_a_name():
    assert settings_in("gru") == {}
    assert settings_in("gru:layers=2,bias=true,kind=full,rate=0.5") == {
        "layers": 2, "bias": True, "kind": "full", "rate": 0.5,
    }  # fmt: skip


def test_help_tells_of_extensions(capsys):
    assert cli.main(["--help"]) == 0
    assert "--extend FILE.py" in capsys.readouterr().out
