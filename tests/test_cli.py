"""The command line: help is fast, mistakes are one sentence and a status, our own mistakes keep their traceback."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from brainjanus import cli, manual
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.manual import OPTION


def brainjanus(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "brainjanus", *argv], capture_output=True, text=True, timeout=60)


def raising(error: BaseException):
    def command(argv: list[str]) -> Path:
        """Raise."""
        raise error

    return command


def test_help_names_every_command_without_importing_what_is_slow():
    code = (
        "import sys\n"
        "from brainjanus.cli import main\n"
        "status = main(['--help']) or main(['train', '--help']) or main(['generate', '--help'])\n"
        "slow = {'torch', 'numpy', 'scipy', 'sklearn', 'nilearn', 'matplotlib', 'rich'} & sys.modules.keys()\n"
        "sys.exit(f'imported {slow}' if slow else status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert f"\n  brainjanus {name} " in done.stdout


def test_no_command_shows_the_commands_and_fails(capsys):
    assert cli.main([]) == 2
    assert "brainjanus demo" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["help"], ["help", "--help"], ["--help"]])
def test_help_alone_is_the_overview(argv, capsys):
    assert cli.main(argv) == 0
    assert "Start with `brainjanus demo`" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("brainjanus 0.")


def test_an_unknown_command_is_one_sentence_with_the_commands_that_exist():
    done = brainjanus("decode")
    assert done.returncode == 2
    assert done.stderr.startswith("brainjanus: command: expected one of demo, ")
    assert "got 'decode'" in done.stderr
    assert "Correct it" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["trian"], "got 'trian'. Did you mean train?"),
        (
            ["demo", "--sed", "3"],
            "demo: expected an option that `brainjanus demo --help` explains, got '--sed'. Did you",
        ),
        (["train", "d", "--ouut=x"], "got '--ouut'. Did you mean --out?"),
        (
            ["train", "tokenizer", "d", "--publish"],
            "`brainjanus train tokenizer --help` explains, got '--publish'. Did",
        ),
        (["prepare", "--from", "nsd", "d", "--subject", "s"], "got '--subject'. Did you mean --subjects?"),
        (["demo", "--wholly-other", "3"], "got '--wholly-other'. Correct it, or leave it out."),
        (["demo", "--seed", "many"], "demo --seed INT: expected another value: "),
        (["demo", "--seed"], "demo: expected a value behind --seed INT, got none."),
        (["demo", "now"], "demo: expected no further arguments, got 'now'."),
        (["compare"], "compare: expected "),
        (["export", "mindeye", "d", "--out", "x"], "got 'mindeye'. Did you mean mindeye2?"),
    ],
)
def test_a_mistaken_argument_is_one_sentence(argv, sentence, capsys):
    assert cli.main(argv) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1 and told.startswith("brainjanus: ")


def test_a_short_name_of_a_setting_is_understood(capsys):
    assert cli.main(["train", "d", "--out", "x", "--lr", "3"]) == 2
    assert "or --training.optim.learning-rate?" in capsys.readouterr().err


def test_what_other_programs_call_it_leads_to_an_option(capsys):
    """Each of these names leads to an option of some command, and of the one that is asked."""
    options = {
        name.rpartition(".")[2].lstrip("-") for page in cli.COMMANDS for name in OPTION.findall(manual.page(page))
    }
    assert set(manual.OTHERS_SAY.values()) <= options and not set(manual.OTHERS_SAY) & options
    for command, other, ours in (("train", "epochs", "--training.optim.steps"), ("generate", "prompt", "--text")):
        assert cli.main([command, "d", f"--{other}", "3"]) == 2
        assert f"{ours}?" in capsys.readouterr().err


def test_without_the_hook_of_tyro_a_mistake_has_status_2_still(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro._errors", None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", "--seed", "many"])
    assert stopped.value.code == 2 and "--seed" in capsys.readouterr().err


def test_a_mistake_of_the_user_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "demo", raising(UserError("data/mine: expected a folder, got a file.")))
    assert cli.main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "brainjanus: data/mine: expected a folder, got a file.\n")


def test_our_own_mistake_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "demo", raising(ValueError("no UserError")))
    with pytest.raises(ValueError, match="no UserError"):
        cli.main(["demo"])


@pytest.mark.parametrize(
    ("command", "saved", "sentence"),
    [
        ("demo", "", "what was finished is saved. Run the same command again to go on from there."),
        ("train", "omni is saved at step 3 of 9", "omni is saved at step 3 of 9. Run the same command again to go on"),
        ("prepare", "", "nothing was written to --out. Run the same command again to start over."),
        (
            "prepare",
            "what was finished is kept in x",
            "what was finished is kept in x. Run the same command again to go",
        ),
    ],
)
def test_an_interrupt_says_what_is_saved_and_how_to_go_on(command, saved, sentence, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, command, raising(KeyboardInterrupt(saved)))
    assert cli.main([command]) == 130
    err = capsys.readouterr().err
    assert err.startswith(f"brainjanus: stopped; {sentence}")
    assert err.count("\n") == 1


FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    ("command", "error", "where", "remedy"),
    [
        (
            "train",
            torch.OutOfMemoryError(f"{FULL}\nSee"),
            "a graphics card",
            "Run the same command again with --hardware",
        ),
        ("train tokenizer", torch.OutOfMemoryError(FULL), "a graphics card", "Give a smaller --training.batch-size"),
        (
            "evaluate",
            RuntimeError("CUDA error: out of memory"),
            "a graphics card",
            "Close what else is there, or run it on the CPU",
        ),
        (
            "generate",
            MemoryError(),
            "this machine",
            "Ask for fewer --samples or rows. Close what else runs there, or use",
        ),
        ("tune", torch.OutOfMemoryError(FULL), "a graphics card", "Run the same command again with --hardware.rows"),
        ("explore", RuntimeError("[] can't allocate memory: 9 bytes"), "this machine", "Close what else runs there"),
    ],
)
def test_too_little_memory_is_a_sentence(command, error, where, remedy, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, command.split()[0], raising(error))
    monkeypatch.setattr(cli, "check_options", lambda argv: None)
    assert cli.main(command.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"brainjanus: {command}: expected enough memory of {where}, got '") and err.count("\n") == 1
    assert f"'. {remedy}" in err


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "explore", raising(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["explore"])


def test_too_little_memory_of_an_extension(tmp_path, capsys):
    (tmp_path / "large.py").write_text("raise MemoryError\n")
    assert cli.main(["--extend", str(tmp_path / "large.py")]) == 2
    assert capsys.readouterr().err.startswith("brainjanus: brainjanus: expected enough memory of this machine")


def test_memory_that_is_really_too_little(monkeypatch, capsys):
    def asking(argv: list[str]) -> Path:
        """Ask."""
        return torch.empty(2**50)

    monkeypatch.setitem(cli.COMMANDS, "generate", asking)
    assert cli.main(["generate"]) == 2
    assert "expected enough memory of this machine" in capsys.readouterr().err


def test_a_training_that_is_asked_to_end_is_saved_and_has_status_75(study, tiny_settings, tmp_path):
    """A real SIGTERM, in the middle of the last stage; the same command goes on from there."""
    training = {"optim": {"steps": 100_000, "batch_size": 4, "log_every": 1}, "validate_every": 0}
    settings = tiny_settings | {"training": training}
    (tmp_path / "tiny.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "brainjanus", "train", study.path, "--out", tmp_path / "run"]
    process = subprocess.Popen(
        [*map(str, command), "--config", str(tmp_path / "tiny.json")], stderr=subprocess.PIPE, text=True
    )
    log, until = tmp_path / "run" / "stages" / "omni" / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text()) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.TRY_AGAIN == 75, err
    last = err.splitlines()[-1]
    said = re.fullmatch(r"brainjanus: stopped; omni is saved at step (\d+) of 100000\. Run the same command .*", last)
    assert said, err
    (state,) = (tmp_path / "run" / "stages" / "omni" / "state").glob(f"step-{int(said[1]):08d}")
    assert json.loads((state / "state.json").read_text())["step"] == int(said[1])


def test_a_reader_that_closes_the_pipe_hears_nothing():
    code = (
        "import sys\n"
        "from brainjanus import cli\n"
        "cli.COMMANDS['demo'] = lambda argv: 'x' * 1_000_000\n"
        "sys.exit(cli.main(['demo']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert err == b""
    assert process.returncode == 141


@pytest.mark.parametrize("options", [["nsd-7b", "--samples", "4"], ["--samples", "4", "nsd-7b"]])
def test_memory_takes_its_recipe_from_any_place(options, monkeypatch, capsys):
    from brainjanus import memory

    asked = []
    monkeypatch.setattr(
        memory, "janus_table", lambda recipe, study, samples, rows: asked.append((recipe, samples)) or []
    )
    assert cli.main(["memory", *options]) == 0
    ((recipe, samples),) = asked
    assert (recipe.omni.decoder.hidden_size, samples) == (4096, 4)
    assert "nsd-7b, computed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--samples", "0"], "--samples: expected at least 1, got 0"),
        (["--study.sites", "0"], "expected subjects, sites and text_codes of at"),
        (["--omni.image-input", "wavelet"], "expected omni.image_input codes or janus, got 'wavelet'"),
        (["--omni.text-input", "clip"], "expected omni.text_input codes, got 'clip'"),
    ],
)
def test_memory_says_what_it_cannot_compute(options, sentence, capsys):
    try:
        status = cli.main(["memory", "nsd-1b", *options])
    except SystemExit as stop:  # of the parser
        status = stop.code
    assert status == 2 and sentence in capsys.readouterr().err


def test_the_option_that_the_export_asks_for_exists(monkeypatch):
    """In the words of `save_janus`."""
    from brainjanus import run

    asked = []
    monkeypatch.setattr(run, "train", lambda dataset, out, options, **how: asked.append(options))
    cli.main(["train", "data", "--out", "out", "--recipe", "nsd-1b", "--omni.no-image-places"])
    assert asked[0].omni.image_places is False


def test_the_result_is_the_last_line_printed(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "demo", lambda argv: Path("runs/demo/report.html"))
    assert cli.main(["demo"]) == 0
    assert capsys.readouterr().out == "runs/demo/report.html\n"


@pytest.mark.parametrize("argv", [["--out", "x", "--config", "run.toml"], ["--config=run.toml"]])
def test_the_config_file_is_found_among_other_arguments(argv):
    assert cli.config_file(argv) == Path("run.toml")
    assert cli.config_file(["--out", "x", "--confidence", "1"]) is None


# --- prepare --from


@pytest.fixture
def layout(monkeypatch):
    """A layout whose folder holds one session of eight stimuli; says what it was asked for."""
    from brainjanus.core.space import BrainSpace
    from brainjanus.data import layouts
    from brainjanus.data.study import Pictures, Recorded, Session, Study

    ids, asked = [f"s{i}" for i in range(8)], []
    responses = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)

    def read(names, size):
        return ((name, np.full((size, size, 3), ids.index(name), np.uint8)) for name in names)

    def open_study(name, path, options):
        asked.append((name, path, options))
        who = Recorded(BrainSpace("subj01", 3), [Session(1, ids, lambda: responses)])
        split = {name: "test" if name < "s2" else "train" for name in ids}
        return Study(name, "planted", "fMRI", [who], Pictures(ids, read), {"coco": {"s0": ["a cup"]}}, split)

    monkeypatch.setattr(layouts, "open_study", open_study)
    return asked


def test_prepare_reads_a_layout_with_its_options(layout, tmp_path, capsys):
    argv = [
        "prepare",
        "--from",
        "nsd",
        "somewhere",
        "--out",
        str(tmp_path / "ds"),
        "--subjects",
        "subj01",
        "--mask",
        "v1",
    ]
    assert cli.main([*argv, "--image-size", "4", "--responses-dtype", "float16", "--name", "mine"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'ds'}\n"
    ((name, path, options),) = layout
    assert (name, path, options.subjects, options.mask) == ("nsd", Path("somewhere"), ("subj01",), "v1")
    made = Dataset.open(tmp_path / "ds")
    assert (made.name, made.image_size, made.captions("s0", "coco")) == ("mine", 4, ("a cup",))
    provenance = made.manifest["provenance"]
    assert provenance["path"] == str(Path("somewhere").absolute()) and provenance["study"]["mask"] == "v1"


def test_a_plan_says_what_it_would_take_and_writes_nothing(layout, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", "--from", "nsd", "somewhere", "--plan"]) == 0
    assert "writes   subjects/subj01/responses.safetensors: 96 B" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["prepare", "--from", "nsd", "somewhere"]) == 2
    assert "prepare: expected --out, or --plan" in capsys.readouterr().err


def test_an_unknown_layout_is_refused(tmp_path, capsys):
    assert cli.main(["prepare", "--from", "ndd", str(tmp_path), "--out", str(tmp_path / "ds")]) == 2
    assert "--from: expected one of nsd, mindeye2," in capsys.readouterr().err


def test_help_of_prepare_from_explains_its_options(capsys):
    assert cli.main(["prepare", "--from", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for words in ("The layout (nsd, mindeye2", "--from LAYOUT PATH", "Only say what was found", "Further sources of"):
        assert words in told, told


# --- export


@pytest.fixture(scope="module")
def cortex(tmp_path_factory) -> Dataset:
    """Two simulated subjects, in sessions that count from 0."""
    from brainjanus.data.simulate import SimulationConfig, simulate

    config = SimulationConfig(
        num_subjects=2, num_train=12, num_test=4, repeats=2, num_sites=(60, 64), trials_per_session=16
    )
    return simulate(tmp_path_factory.mktemp("cortex"), config)


@pytest.fixture(params=["cortex", "study"])
def source(request) -> Dataset:
    """Two sessions, z-scored each; or subjects s1 and s2, z-scored over all trials of one session, number 0."""
    return request.getfixturevalue(request.param)


def check_same(again: Dataset, source: Dataset, subject: str, name: str, rounded: float) -> None:
    """Trial by trial, in the order of both: stimulus, split and response."""
    mine, other = again.trials(name), source.trials(subject)
    assert mine.stimulus_id == other.stimulus_id and mine.split == other.split
    assert (np.diff(mine.session) == np.diff(other.session)).all()
    np.testing.assert_allclose(again.responses(name), source.responses(subject), rtol=0, atol=rounded)


def test_what_is_exported_is_prepared_again_to_the_same(source, tmp_path, capsys):
    out = tmp_path / "mindeye2"
    assert cli.main(["export", "mindeye2", str(source.path), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n" and "\nNote: Responses are z-scored with training trials only" in told.err
    prepare = ["prepare", "--from", "mindeye2", str(out), "--image-size", str(source.image_size), "--zscore"]
    assert cli.main([*prepare, "none", "--out", str(tmp_path / "again")]) == 0
    again = Dataset.open(tmp_path / "again")
    assert again.subjects == source.subjects and again.modality == source.modality and again.name == source.name
    for subject in source.subjects:
        check_same(again, source, subject, subject, rounded=0)
    how = source.manifest["zscore"]
    assert ("--zscore none" in told.err) == (how == "all")
    assert cli.main([*prepare, how, "--out", str(tmp_path / "scored")]) == 0
    check_same(Dataset.open(tmp_path / "scored"), source, source.subjects[0], source.subjects[0], rounded=2e-5)


def test_one_subject_is_exported_with_its_pictures_alone(study, tmp_path, capsys):
    import brainjanus as bj

    out = tmp_path / "out"
    assert cli.main(["export", "brainjanus", str(study.path), "--subjects", "s2", "--out", str(out)]) == 0
    assert "Note: Subjects are called subj01, subj02" in capsys.readouterr().err
    assert (
        cli.main(["prepare", "--from", "brainjanus", str(out), "--zscore", "none", "--out", str(tmp_path / "b")]) == 0
    )
    again = Dataset.open(tmp_path / "b")
    assert again.subjects == ("s2",) and set(again.stimulus_ids) == set(study.trials("s2").stimulus_id)
    order = np.lexsort((again.trials("s2").repeat, again.trials("s2").stimulus_id))
    planned = np.lexsort((study.trials("s2").repeat, study.trials("s2").stimulus_id))
    np.testing.assert_allclose(again.responses("s2", order), study.responses("s2", planned), rtol=2**-8)
    assert again.captions("s070") == study.captions("s070")
    made = bj.export(study, "brainjanus", tmp_path / "python", subjects=["s2"]).path
    names = sorted(file.relative_to(out) for file in out.rglob("*"))
    assert names == sorted(file.relative_to(made) for file in made.rglob("*"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["brainjanus", "--subjects", "anna"], "--subjects: expected subjects of {} (s1, s2), got 'anna'."),
        (["mindeye2", "--out", "."], ".: expected a new folder, got something there."),
    ],
)
def test_an_export_that_cannot_be_is_refused_in_one_sentence(options, sentence, study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    layout, *rest = options
    out = [] if "--out" in rest else ["--out", "out"]
    assert cli.main(["export", layout, str(study.path), *rest, *out]) == 2
    assert sentence.format(study.path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
