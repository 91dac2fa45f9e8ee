"""The command line: arguments enter, one function of the package runs, the path of what it made is printed last.

A user's mistake ends with one sentence and status 2, Ctrl-C with one sentence and status 130, SIGTERM (a scheduler
wants the machine back) with one sentence and status 75: run the same command again. Our own mistakes keep their
traceback. A command imports what it needs when it runs, so that `brainjanus --help` answers at once.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

from brainjanus import arguments, science
from brainjanus.arguments import DatasetFolder, RunFolder, early, gathered
from brainjanus.core.errors import Preempted, UserError, first_line, reported, short_of
from brainjanus.core.extensions import extensions_in, load_extension
from brainjanus.manual import HELP, check_options, meant, page_asked

C = TypeVar("C")
RESUMABLE = (
    "demo",
    "train",
    "tune",
    "ablate",
    "evaluate",
)  # the others write their result at the very end, or not at all
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status. argv: without the program's name (default: those of the process)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            argv, extensions = extensions_in(argv)
            with heeding_sigterm():
                for file in extensions:
                    load_extension(file)
                return dispatch(argv)
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"brainjanus: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"brainjanus: {after_interrupt(argv, str(interrupt))}", file=sys.stderr)
        return TRY_AGAIN if isinstance(interrupt, Preempted) else 130
    except (MemoryError, RuntimeError) as error:
        if (told := out_of_memory(argv, error)) is None:
            raise
        print(f"brainjanus: {told}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush would complain
        return 128 + 13


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does; what has more to save than that sees to it itself."""

    def end(number: int, _frame: object) -> None:
        raise Preempted

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"brainjanus {version('brainjanus')}")
        return 0
    if argv[0] == "help":
        return dispatch([*(word for word in argv[1:] if word not in HELP), "--help"])
    if argv[0] not in COMMANDS:
        raise UserError(
            f"command: expected one of {', '.join(COMMANDS)}, got '{argv[0]}'. {meant(argv[0], COMMANDS)} "
            "`brainjanus --help` says what each does."
        )
    if told := page_asked(argv):
        print(told, end="")
        return 0
    check_options(argv)
    if made := COMMANDS[argv[0]](argv[1:]):
        print(made)
    return 0


def overview() -> str:
    summaries = {name: str(command.__doc__).splitlines()[0] for name, command in COMMANDS.items()}
    return "\n".join(
        [
            "brainjanus: one model between brain recordings, images and text, in any direction.",
            "",
            *(f"  brainjanus {name:<11}{summary}" for name, summary in summaries.items()),
            "",
            "Start with `brainjanus demo`. `brainjanus COMMAND --help` says what a command takes, with examples.",
            "--extend FILE.py, with any command, first loads layouts, metrics, tokenizers or backbones of your own.",
        ]
    )


def after_interrupt(argv: Sequence[str], saved: str) -> str:
    """What Ctrl-C left; saved: what the stage itself says of it, e.g. 'omni is saved at step 300 of 900'."""
    command = argv[0] if argv else ""
    if command in RESUMABLE:
        return f"stopped; {saved or 'what was finished is saved'}. Run the same command again to go on from there."
    if command == "prepare" and saved:  # --from
        return f"stopped; {saved}. Run the same command again to go on from there."
    if command == "explore":
        return "stopped"
    told = f"stopped {saved}" if command == "generate" and saved else "stopped"
    return f"{told}; nothing was written to --out. Run the same command again to start over."


def out_of_memory(argv: Sequence[str], error: MemoryError | RuntimeError) -> str | None:
    """What to do where memory did not suffice; None: it is another error."""
    if (where := short_of(error)) is None:
        return None
    command = " ".join(argv[:2] if argv[:2] == ["train", "tokenizer"] else argv[:1])
    smaller = "Run the same command again with --hardware.rows-at-once 8, or fewer"
    other = "Close what else runs there, or use a larger one."
    if where != "this machine":
        other = "Close what else is there, or run it on the CPU: CUDA_VISIBLE_DEVICES= before the same command does."
    remedy = {
        "train": f"{smaller}, and --training.recompute: it goes on from what is saved.",
        "tune": f"{smaller}: it goes on from what is saved.",
        "train tokenizer": "Give a smaller --training.batch-size and another --out.",
        "generate": f"Ask for fewer --samples or rows. {other}",
    }.get(command, other)
    return f"{command or 'brainjanus'}: expected enough memory of {where}, got '{first_line(error)}'. {remedy}"


def demo(argv: list[str]) -> Path:
    """Do it all on the simulated cortex: make the data, train, generate in four directions, score, report.

    Examples:
        brainjanus demo
        brainjanus demo --out runs/demo --seed 1 --quick

    Args:
        out: Folder for the dataset, the run, report.html and scores.json.
        seed: Of the simulated cortex, of training and of generation.
        quick: Smaller numbers everywhere: done sooner, with worse scores.
    """

    def run(out: Path = Path("runs/demo"), seed: int = 0, quick: bool = False) -> Path:
        from brainjanus.demo import demo as show

        return show(out, seed=seed, quick=quick)

    return arguments.parse(demo, run, argv)


def simulate(argv: list[str]) -> Path:
    """Simulate a study: a dataset of a few subjects' visual cortex, EEG or MEG, and its truth apart from it.

    Examples:
        brainjanus simulate --out data/simulated
        brainjanus simulate --out data/simulated --seed 3
        brainjanus simulate eeg --out data/eeg --num-subjects 1

    Args:
        what: cortex (fMRI on the surface), eeg (63 channels x 250 time points) or meg (271 x 201).
        out: Folder for the dataset (OUT/dataset) and the truth (OUT/truth).
        overwrite: Replace what is there.
    """
    from brainjanus.data.simulate import SimulationConfig
    from brainjanus.data.simulate import simulate as make
    from brainjanus.data.simulate_sensors import SensorSimulationConfig, simulate_sensors

    what = argv[0] if argv and not argv[0].startswith("-") else "cortex"
    argv = argv[1:] if argv and argv[0] == what else argv
    bases = {"eeg": SensorSimulationConfig("eeg"), "meg": SensorSimulationConfig("meg")}
    if what not in ("cortex", *bases):
        raise UserError(f"simulate: expected cortex, eeg or meg, got '{what}'. Name one of these, or none: a cortex.")
    base = bases.get(what, SimulationConfig())

    def run(out: Path, overwrite: bool = False, options: Annotated[Any, arg(name="")] = base) -> Path:
        if isinstance(options, SimulationConfig):
            return make(out, options, overwrite=overwrite).path
        return simulate_sensors(out, options, overwrite=overwrite).path

    run.__annotations__["options"] = Annotated[type(base), arg(name="")]
    return arguments.parse(simulate, run, argv, "simulate" if what == "cortex" else f"simulate {what}")


def prepare(argv: list[str]) -> Path | str:
    """Turn your recordings, pictures and captions into a dataset.

    One subject can be given by options; several stand in a TOML file, as [[subjects]] tables. Of what others published,
    --from reads the layout; it goes on where it was stopped (see `brainjanus prepare --from --help`).

    Examples:
        brainjanus prepare --config my_data/prepare.toml --out data/mine
        brainjanus prepare --responses betas.npy --trials trials.tsv --pictures pictures.zip --out data/mine
        brainjanus prepare --from nsd ~/nsd --out data/nsd

    Args:
        out: Folder for the dataset.
        config: TOML file with the options below; paths in it are relative to its folder.
        overwrite: Replace a dataset that is there.
    """
    from brainjanus.data.prepare import PrepareConfig
    from brainjanus.data.prepare import prepare as make

    if any(word.partition("=")[0] == "--from" for word in argv):
        return prepare_from(["--help"] if {"-h", "--help"} & set(argv) else argv)
    file = config_file(argv)
    base: Any = tyro.MISSING_NONPROP if file is None else PrepareConfig.load(file)

    def run(
        out: Path,
        config: Path | None = None,
        overwrite: bool = False,
        options: Annotated[PrepareConfig, arg(name="")] = base,
    ) -> Path:
        return make(options, out, overwrite).path

    return arguments.parse(prepare, run, argv)


def prepare_from(argv: list[str]) -> str:
    """Turn a dataset in one of the field's layouts into one of ours; goes on where it was stopped.

    Examples:
        brainjanus prepare --from nsd ~/nsd --plan
        brainjanus prepare --from nsd ~/nsd --subjects subj01 --image-size 384 --out data/nsd
        brainjanus prepare --from mindeye2 ~/mindeye2 --captions vlm=recaptions.json --out data/nsd

    Args:
        source: The layout (LAYOUTS) and its folder.
        out: Folder for the dataset.
        plan: Only say what was found, what is missing, and how much room and time it would take.
        overwrite: Replace a dataset that is there.
    """
    from brainjanus.data.layouts import LAYOUTS, open_study
    from brainjanus.data.plan import StreamOptions, plan_study
    from brainjanus.data.stream import stream_study
    from brainjanus.data.study import StudyOptions
    from brainjanus.data.write import refuse_existing

    def run(
        source: Annotated[tuple[str, Path], arg(name="from", metavar="LAYOUT PATH")],
        out: Path | None = None,
        plan: bool = False,
        overwrite: bool = False,
        which: Annotated[StudyOptions, arg(name="")] = StudyOptions(),  # noqa: B008
        options: Annotated[StreamOptions, arg(name="")] = StreamOptions(),  # noqa: B008
    ) -> str:
        layout, path = source
        if out is None and not plan:
            raise UserError("prepare: expected --out, or --plan to see what it would take, got neither. Give one.")
        study = open_study(layout, path, which)
        if plan:
            return plan_study(study, out or Path.cwd() / study.name, options).text
        assert out is not None
        with reported(out):
            refuse_existing(out, overwrite)
        told = plan_study(study, out, options, timed=False)._replace(notices=())  # which are told when it begins
        print(told.text, file=sys.stderr)
        made_from = {"path": str(path.absolute()), "study": asdict(which)}
        return str(stream_study(study, out, options, overwrite=overwrite, provenance=made_from).path)

    prepare_from.__doc__ = str(prepare_from.__doc__).replace("LAYOUTS", LAYOUTS.names())
    return arguments.parse(prepare_from, run, argv, "prepare --from LAYOUT PATH")


def export(argv: list[str]) -> Path:
    """Write a dataset in the layout of MindEye2 or BrainJanus, so that a peer runs on the same data.

    Examples:
        brainjanus export mindeye2 data/mine --out mindeye2_mine
        brainjanus export brainjanus data/nsd --subjects subj01 --out brainjanus_nsd
        brainjanus prepare --from mindeye2 mindeye2_mine --zscore none --out data/again

    Args:
        layout: mindeye2 or brainjanus.
        dataset: Folder that `brainjanus prepare` or `brainjanus simulate` wrote.
        out: Folder for the peer's files. It has to be new.
        subjects: Only these. Default: all.
    """

    def run(
        layout: Positional[Annotated[Literal["mindeye2", "brainjanus"], arg(metavar="LAYOUT")]],
        dataset: DatasetFolder,
        out: Path,
        subjects: tuple[str, ...] = (),
    ) -> Path:
        from brainjanus.data.export import export as write

        exported = write(dataset, layout, out, subjects)
        for notice in exported.notices:
            print(f"Note: {notice}", file=sys.stderr)
        return exported.path

    return arguments.parse(export, run, argv)


def train(argv: list[str]) -> Path | str:
    """Train the tokenizers and one model on a dataset; goes on where it was stopped.

    Examples:
        brainjanus train data/mine --out runs/mine
        brainjanus train data/mine --out runs/longer --config runs/mine/config.json --training.optim.steps 5000
        brainjanus train data/v4 --out runs/v4 --recipe neurons --omni.image-input mobilenet
        brainjanus train data/nsd --out runs/nsd --recipe nsd-1b --janus models/Janus-Pro-1B
        brainjanus train tokenizer data/mine --out runs/tokenizer   (the brain tokenizer alone; see its --help)
        torchrun --nproc-per-node 4 -m brainjanus train data/nsd --out runs/nsd --recipe nsd-7b --hardware.parallel fsdp

    Args:
        dataset: Folder that `brainjanus prepare` or `brainjanus simulate` wrote.
        out: Folder for the run. If it holds an unfinished run, that one goes on.
        config: JSON or TOML file with the options below, such as the config.json of a run.
        recipe: Defaults of the options below: laptop (fMRI), quick, neurons (tens of sites), few-trials (under 300),
            nsd-1b, nsd-7b (Janus-Pro; with --janus, its folder or its name on the hub). Without it, the one that fits
            the dataset, with the features that the dataset stores.
        tokenizer: Folder of a brain tokenizer that was trained on this dataset, to be used as it is.
        log_to: Where the logs of all stages go besides RUN/stages/*/log.jsonl.
        hardware: What it runs on; may differ when it goes on.
    """
    from brainjanus.core.processes import is_first_of_all
    from brainjanus.recipes import RunConfig
    from brainjanus.run import train as fit
    from brainjanus.train.parallel import ANY, Hardware
    from brainjanus.train.watch import Sink

    if argv and argv[0] == "tokenizer":
        return train_tokenizer(argv[1:])

    base = settings(argv, "train")

    def run(
        dataset: DatasetFolder,
        out: Path,
        config: Path | None = None,
        recipe: str | None = None,
        tokenizer: Path | None = None,
        log_to: tuple[Sink, ...] = (),
        hardware: Hardware = ANY,
        options: Annotated[RunConfig, arg(name="")] = base,
    ) -> str:
        if tokenizer is not None and options.brain_tokenizer != base.brain_tokenizer:
            raise UserError(
                "train: expected --tokenizer or settings of a brain tokenizer, got both. A trained tokenizer is used "
                "as it is: leave the --brain-tokenizer options out."
            )
        fit(dataset, out, options, tokenizer=tokenizer, hardware=hardware, sinks=log_to)
        return str(out) if is_first_of_all() else ""

    return arguments.parse(train, run, argv)


def train_tokenizer(argv: list[str]) -> Path:
    """Train a brain tokenizer on a dataset, and report what it keeps; goes on where it was stopped.

    Examples:
        brainjanus train tokenizer data/mine --out runs/tokenizer
        brainjanus train tokenizer data/mine --out runs/fsq --tokenizer.quantizer.kind fsq
        brainjanus train tokenizer data/mine --out runs/published --published
        brainjanus train tokenizer data/new --out runs/with-new --start runs/tokenizer

    Args:
        dataset: Folder that `brainjanus prepare` or `brainjanus simulate` wrote.
        out: Folder for the tokenizer and its report. If it holds an unfinished one, that one goes on.
        config: JSON or TOML file with the options below, such as the config.json of a tokenizer.
        published: The published encoder and codebook instead of those that fit the dataset. Slow.
        start: Folder of a trained tokenizer. The subjects of the dataset are added to it; all that it has stays.
        device: auto (a GPU where there is one), cpu or cuda.
    """
    from brainjanus.recipes import TokenizerRunConfig, tokenizer_fitting
    from brainjanus.tokenize import report_tokenizer
    from brainjanus.tokenize import train_tokenizer as fit
    from brainjanus.tokenizers.brain import published as published_tokenizer
    from brainjanus.train.parallel import Hardware

    file = config_file(argv)
    unfitted = TokenizerRunConfig()
    base = fitted(argv, tokenizer_fitting, unfitted) if file is None else TokenizerRunConfig.load(file)
    if "--published" in argv:
        if file is not None:
            raise UserError("train tokenizer: expected --published or --config, got both. Leave one of them out.")
        base = replace(base, tokenizer=published_tokenizer())

    def run(
        dataset: DatasetFolder,
        out: Path,
        config: Path | None = None,
        published: bool = False,
        start: Path | None = None,
        device: str = "auto",
        options: Annotated[TokenizerRunConfig, arg(name="")] = base,
    ) -> Path:
        if start is not None and options.tokenizer != base.tokenizer:
            raise UserError(
                "train tokenizer: expected --start or settings of the tokenizer, got both. A new subject is added to a "
                "tokenizer as it is: leave the --tokenizer options out."
            )
        fit(dataset, out, options, start=start, hardware=Hardware(device))
        report_tokenizer(out, dataset)
        return out / "report.html"

    return arguments.parse(train_tokenizer, run, argv, "train tokenizer")


def tune(argv: list[str]) -> Path:
    """Search for a learning rate in short trainings; goes on where it was stopped.

    Examples:
        brainjanus tune data/mine --out runs/rates
        brainjanus tune data/mine --out runs/rates --rates 1e-3 2e-3 4e-3 8e-3 --steps 300 --seeds 0 1
        brainjanus train data/mine --out runs/mine --config runs/rates/config.json

    Args:
        dataset: Folder that `brainjanus prepare` or `brainjanus simulate` wrote.
        out: Folder for rates.tsv, rates.png and config.json: the settings, with the best rate. Rates and seeds may be
            added in the same folder.
        rates: Learning rates of the model. Default: a quarter, half, once and twice that of the options below.
        steps: Of each training; its whole schedule is scaled to them.
        seeds: Of weights and batches, each with each rate. Default: the one of the options below.
        config: JSON or TOML file with the options below, such as the config.json of a run.
        recipe: Defaults of the options below, as in `train`. Without it, the one that fits the dataset.
        tokenizer: Folder of a brain tokenizer that was trained on this dataset, to be used as it is.
        hardware: What it runs on; may differ when it goes on.
    """
    from brainjanus.recipes import RunConfig
    from brainjanus.train.parallel import ANY, Hardware

    base = settings(argv, "tune")

    def run(
        dataset: DatasetFolder,
        out: Path,
        rates: tuple[float, ...] = (),
        steps: int = 300,
        seeds: tuple[int, ...] = (),
        config: Path | None = None,
        recipe: str | None = None,
        tokenizer: Path | None = None,
        hardware: Hardware = ANY,
        options: Annotated[RunConfig, arg(name="")] = base,
    ) -> Path:
        from brainjanus.tables import print_rates
        from brainjanus.tune import tune as search

        found = search(
            dataset, out, options, rates, steps=steps, seeds=seeds, tokenizer=tokenizer, hardware=hardware
        )  # fmt: skip
        print_rates(found)
        return out / "config.json"

    return arguments.parse(tune, run, argv)


def tokenize(argv: list[str]) -> Path:
    """Turn responses into codes with a trained brain tokenizer, and back.

    Examples:
        brainjanus tokenize runs/tokenizer data/mine --out codes

    Args:
        tokenizer: Folder that `brainjanus train tokenizer` wrote.
        dataset: Folder of the dataset.
        out: Folder for SUBJECT.safetensors (`codes`, and the responses `decoded` from them) and SUBJECT.json (stimuli).
        split: Whose mean responses: train, val or test.
    """

    def run(
        tokenizer: Positional[Annotated[Path, arg(metavar="TOKENIZER")]],
        dataset: DatasetFolder,
        out: Path,
        split: Literal["train", "val", "test"] = "test",
    ) -> Path:
        from brainjanus.tokenize import tokenize_files

        return tokenize_files(tokenizer, dataset, out, split)

    return arguments.parse(tokenize, run, argv)


def ablate(argv: list[str]) -> Path:
    """Train brain tokenizers of many sizes, and show what bits buy; goes on where it was stopped.

    Examples:
        brainjanus ablate tokenizer data/mine --out runs/ablation
        brainjanus ablate tokenizer data/mine --out runs/ablation --num-codes 64 256 --compression 32 64 \\
            --quantizers vq fsq --downstream none

    Args:
        dataset: Folder of the dataset.
        out: Folder for ablation.tsv, ablation.png, report.html, and one tokenizer a cell.
        truth: Folder with the noise-free responses of a simulated study. Default: `truth` beside the dataset, if any.
    """
    from brainjanus.ablate import AblationConfig, ablate_tokenizer
    from brainjanus.recipes import TokenizerRunConfig, tokenizer_fitting

    if not argv or (argv[0] != "tokenizer" and argv[0] not in ("-h", "--help")):
        raise UserError(
            f"ablate: expected 'tokenizer', got {repr(argv[0]) if argv else 'nothing'}. Say what: "
            "`brainjanus ablate tokenizer DATASET --out DIR`."
        )
    argv = argv[1:] if argv[0] == "tokenizer" else argv
    base = AblationConfig(base=fitted(argv, tokenizer_fitting, TokenizerRunConfig()))

    def run(
        dataset: DatasetFolder,
        out: Path,
        truth: Path | None = None,
        options: Annotated[AblationConfig, arg(name="")] = base,
    ) -> Path:
        return ablate_tokenizer(dataset, out, options, truth)

    return arguments.parse(ablate, run, argv, "ablate tokenizer")


def generate(argv: list[str]) -> str:
    """Predict brains, images and texts from any of the others, or from a part of a brain.

    Examples:
        brainjanus generate --image cat.png --to brain:subj01
        brainjanus generate --text "a face" --to brain:subj02 --samples 16
        brainjanus generate --brain trial:1234 --to image,text
        brainjanus generate --image x.png --text "a red bird" --to brain
        brainjanus generate --brain subj01:trial:7 --to brain:subj02
        brainjanus generate --brain subj01:stimulus:shared-00001 --rois V1,V2 --to brain:rest
        brainjanus generate --to image --estimate sample --samples 8
        brainjanus generate runs/mine --brain subj01:test --to text --out decoded
        brainjanus generate --brain trial:1234 --to text --candidates "a cat" "a dog"
        brainjanus generate --request decoded/request.json --out again

    Args:
        run: Folder that `brainjanus train` wrote, named before all options. Default: $BRAINJANUS_RUN, else the demo's.
        to: One or more of text, image, brain (everybody's), brain:SUBJECT and brain:rest, with commas between.
        brain: [SUBJECT:]WHAT, WHAT being trial:N (row N of trials.tsv, from 0), stimulus:ID (mean over repeats), test,
            val, train (mean responses), or FILE[:KEY] with raw betas [rows, sites], or NIfTI. Several are several rows,
            or several subjects.
        image: Picture files, stimulus:ID or stimuli:SPLIT; or FILE[:KEY], an array of pictures or features.
        text: Sentences, stimulus:ID or stimuli:SPLIT.
        rois: Regions that are given of the brain, with commas between; the rest of it is unknown.
        candidates: Sentences, pictures or brains (written as above), to be ranked by log p under what is given.
        out: Folder for the answer and request.json. Default: generated/..., named by what is asked.
        dataset: Folder of the dataset, for trials and stimuli. Default: where it was when the run was trained.
        estimate: The expected response or picture ("mean") or a plausible one ("sample"); captions are always sampled.
        samples: How many: that a mean is averaged over (0: one pass without samples), or that are written.
        temperature: Below 1 the likely is preferred; 0 takes the likeliest code each time.
        top_k: Draw from the k most likely codes only; 0 is all.
        top_p: Draw from the fewest codes that hold this probability only.
        guidance: Above 1 the conditions weigh more (classifier-free guidance).
        seed: Of all random draws.
        trial_noise: Samples of a brain get the noise of single trials, too, so that they scatter as repeats do.
        precision: Of the weights. Auto is bfloat16 on a GPU, float16 for a large model on a CPU, else float32.
        device: cpu or cuda.
        acceleration: compile and graphs take a while to begin with, and are faster then (graphs: on a GPU).
        format: Of brains: safetensors, npy, nifti, gifti, png. Default: all that fit the brain, but npy.
        request: A request.json, to be answered again in the same way. Beside it, --out can be given, and RUN.
    """

    def run(
        run: Positional[Annotated[Path | None, arg(metavar="[RUN]")]] = None,
        to: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        brain: tuple[str, ...] = (),
        image: tuple[str, ...] = (),
        text: tuple[str, ...] = (),
        rois: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        candidates: tuple[str, ...] = (),
        out: Path | None = None,
        dataset: Path | None = None,
        estimate: Literal["sample", "mean"] = "mean",
        samples: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        seed: int = 0,
        trial_noise: bool = False,
        precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        device: str = "cpu",
        acceleration: Literal["none", "compile", "graphs"] = "none",
        format: tuple[Literal["safetensors", "npy", "nifti", "gifti", "png"], ...] = (),
        request: Path | None = None,
    ) -> str:
        from brainjanus.core.processes import is_first, together
        from brainjanus.generate import GenerationConfig
        from brainjanus.outputs import generate_files
        from brainjanus.request import Request, load_request, words
        from brainjanus.tables import print_ranking

        if request is not None:
            repeated = load_request(request)
            asked = repeated.request if run is None else replace(repeated.request, run=run.resolve())
        else:
            repeated = None
            asked = Request(
                run=default_run(run).resolve(),
                to=words(",".join(to)),
                brain=brain,
                text=text,
                image=image,
                rois=words(",".join(rois)),
                candidates=candidates,
                dataset=None if dataset is None else dataset.resolve(),
                folder=Path.cwd(),
                formats=format,
                precision=precision,
                device=device,
                acceleration=acceleration,
                config=GenerationConfig(estimate, samples, temperature, top_k, top_p, guidance, seed, trial_noise),
            )
        with together():
            answer = generate_files(asked, out, repeated=repeated)
            if not is_first():
                return ""
        for remark in answer.remarks:
            print(f"brainjanus: {remark}", file=sys.stderr)
        for line in answer.told:
            print(line)
        if answer.ranking:
            print_ranking(answer.ranking)
        return str(answer.folder)

    argv = gathered(argv, ("--brain", "--image", "--text", "--candidates", "--format"))
    if any(word.partition("=")[0] == "--request" for word in argv):
        check_only_out(argv)
    return arguments.parse(generate, run, argv)


def default_run(run: Path | None) -> Path:
    """The run that is named, or else the one that is at hand. Raises UserError if there is none."""
    if run is not None:
        return run
    named, demo = os.environ.get("BRAINJANUS_RUN"), Path("runs/demo/run")
    if named:
        return Path(named)
    if (demo / "model.json").is_file():
        return demo
    raise UserError(
        f"generate: expected a run, named before all options or by $BRAINJANUS_RUN, or that of the demo at {demo}, got "
        "none of them. Train one with `brainjanus train`, or run `brainjanus demo`."
    )


def check_only_out(argv: Sequence[str]) -> None:
    """Raises UserError for what would change a request that is repeated."""
    options = [word.partition("=")[0] for word in argv if word.startswith("--")]
    if others := [option for option in options if option not in ("--request", "--out", "--help")]:
        raise UserError(
            f"--request: expected nothing but --out and RUN beside it, got {', '.join(others)}. A request is repeated "
            "as it was asked: leave these out, or ask anew without --request."
        )


def memory(argv: list[str]) -> str:
    """Say what Janus-Pro on NSD needs in memory, and which graphics cards hold it; nothing is loaded.

    Examples:
        brainjanus memory nsd-7b
        brainjanus memory nsd-7b --training.optim.batch-size 8 --training.lora.rank 64
        brainjanus memory nsd-1b --samples 64 --study.subjects 1
        brainjanus memory nsd-1b --rows-at-once 16

    Args:
        recipe: nsd-1b or nsd-7b; the options below are its settings.
        samples: Of one request.
        rows_at_once: Rows of a batch that a training step takes at a time (--hardware.rows-at-once); 0: all.
        study: Whose brains there are.
    """
    from brainjanus.memory import Study, janus_table
    from brainjanus.recipes import RunConfig, named

    recipes = ("nsd-1b", "nsd-7b")
    name = next((word for word in argv if word in recipes), recipes[0])  # its settings are the defaults of the options
    base, nsd = named(name), Study()

    def run(
        recipe: Positional[Annotated[str, arg(metavar="RECIPE")]],
        samples: int = 16,
        rows_at_once: int = 0,
        study: Study = nsd,
        options: Annotated[RunConfig, arg(name="")] = base,
    ) -> str:
        from brainjanus.tables import print_memory

        if recipe != name:
            raise UserError(f"memory: expected one of {', '.join(recipes)}, got '{recipe}'. Name one of these recipes.")
        print_memory(janus_table(options, study, samples, rows_at_once), f"{recipe}, computed, GB at the peak")
        return ""

    return arguments.parse(memory, run, argv)


def evaluate(argv: list[str]) -> Path:
    """Score all directions on the test stimuli, beside floor, linear baseline and noise ceiling; goes on if stopped.

    Examples:
        brainjanus evaluate runs/mine
        brainjanus evaluate runs/mine data/mine --out runs/mine/scores --weights networks

    Args:
        run: Folder that `brainjanus train` wrote.
        dataset: Folder of the dataset. Default: where it was when the run was trained.
        out: Folder for report.html and scores.json. Default: RUN/scores.
        seed: Of generation, shuffles and permutations.
        device: cpu or cuda.
        weights: Folder with weights of pretrained networks for AlexNet, Inception, CLIP, EffNet and SwAV scores, or
            "hub" to download them.
        clip: Folder (or name on the hub) of CLIP ViT-B/32, for CLIP-S and RefCLIP-S.
        bert: Folder (or name on the hub) of a model, for BERTScore.
    """

    def run(
        run: RunFolder,
        dataset: Positional[Annotated[Path | None, arg(metavar="[DATASET]")]] = None,
        out: Path | None = None,
        seed: int = 0,
        device: str = "cpu",
        weights: Path | None = None,
        clip: str | None = None,
        bert: str | None = None,
    ) -> Path:
        from brainjanus.core.processes import check_alone
        from brainjanus.evaluate.extras import Extras
        from brainjanus.outputs import check_device
        from brainjanus.run import evaluate as score
        from brainjanus.tables import print_remarks, print_table

        check_alone("evaluate")
        check_device(device)
        scored = score(run, dataset, out, seed=seed, extras=Extras(weights, clip=clip, bert=bert), device=device)
        print_table(scored.records)
        print_remarks(scored.skipped, scored.warnings)
        return (out or run / "scores") / "report.html"

    return arguments.parse(evaluate, run, argv)


def score(argv: list[str]) -> Path:
    """Score predictions that any software made.

    Captions are JSON {id: caption}; pictures a folder (ID.png), an archive or an array; responses safetensors, npy,
    npz, mat, HDF5 or NIfTI. Everything is matched by stimulus id.

    Examples:
        brainjanus score brain-to-text --predictions captions.json --references coco.json --out scores
        brainjanus score brain-to-image --predictions decoded/ --dataset data/mine --subject subj01 --out scores
        brainjanus score to-brain --predictions predicted.npy --ids ids.txt --dataset data/mine --subject subj01 \\
            --out scores

    Args:
        task: brain-to-text, brain-to-image or to-brain.
        predictions: File or folder with the predictions.
        out: Folder for scores.json and report.html.
        dataset: Folder of a dataset: its split, baselines, noise ceilings and ROIs.
        references: File or folder to score against, without a dataset.
        subject: Whose brain was decoded or predicted.
        source: What a brain was predicted from.
        ids: File with the stimulus id of each row of an array of predictions: one a line, or a JSON list.
        reference_ids: The same for an array of references.
        estimator: How predictions were drawn, e.g. "sample" or "mean of 5 samples". It stands in the protocol.
        repeats: What the decoder was given of repeats: their averaged responses, or one at a time (with outputs
            averaged, or single).
        units: Of predicted responses: z-scored as the dataset is, or raw betas.
        split: Of the dataset.
        partial: Score the stimuli that predictions and references share, if they are not the same.
        features: NAME=FILE with features of the decoded pictures, for identification in them.
        seen_features: NAME=FILE with the same features of the seen pictures (default: the dataset's NAME).
        decoder: Folder of a run whose decoder restores pictures from predicted responses (encode, then decode).
        constant: A caption that stands for all stimuli, as a floor. Default: the most typical one.
        weights: Folder with weights of pretrained networks for AlexNet, Inception, CLIP, EffNet and SwAV scores, or
            "hub" to download them.
        clip: Folder (or name on the hub) of CLIP ViT-B/32, for CLIP-S and RefCLIP-S.
        pictures: Folder, archive or array of the seen pictures, for CLIP-S without a dataset.
        bert: Folder (or name on the hub) of a model, for BERTScore.
        seed: Of shuffles and resamples.
        permutations: Shuffles for p-values.
        resamples: Bootstrap resamples for intervals.
    """

    def run(
        task: Positional[Annotated[Literal["brain-to-text", "brain-to-image", "to-brain"], arg(metavar="TASK")]],
        predictions: Path,
        out: Path,
        dataset: Path | None = None,
        references: Path | None = None,
        subject: str | None = None,
        source: Literal["image", "text"] = "image",
        ids: Path | None = None,
        reference_ids: Path | None = None,
        estimator: str = "undeclared",
        repeats: Literal["undeclared", "responses", "outputs", "single"] = "undeclared",
        units: Literal["zscored", "raw"] = "zscored",
        split: Literal["test", "val"] = "test",
        partial: bool = False,
        features: tuple[str, ...] = (),
        seen_features: tuple[str, ...] = (),
        decoder: Path | None = None,
        constant: str | None = None,
        weights: Path | None = None,
        clip: str | None = None,
        pictures: Path | None = None,
        bert: str | None = None,
        seed: int = 0,
        permutations: int = 1000,
        resamples: int = 1000,
    ) -> Path:
        from brainjanus.evaluate.extras import Extras
        from brainjanus.evaluate.score import ScoreOptions
        from brainjanus.scoring import score_files
        from brainjanus.tables import print_remarks, print_scores

        extras = Extras(weights, clip=clip, bert=bert)
        scored = score_files(
            task,
            predictions,
            out,
            dataset=dataset,
            references=references,
            subject=subject,
            source=source,
            ids=ids,
            reference_ids=reference_ids,
            estimator=estimator,
            repeats=repeats,
            units=units,
            split=split,
            partial=partial,
            features=features,
            seen_features=seen_features,
            decoder=decoder,
            pictures=pictures,
            options=ScoreOptions(
                seed=seed, permutations=permutations, resamples=resamples, constant_caption=constant, extras=extras
            ),
        )
        print_scores(scored.records)
        print_remarks(scored.skipped, scored.warnings)
        return out / "scores.json"

    return arguments.parse(score, run, argv)


def compare(argv: list[str]) -> str:
    """Put results side by side, if their protocols agree.

    Examples:
        brainjanus compare runs/a/scores runs/b/scores
        brainjanus compare ours=runs/a/scores peer=scores/peer --out table.tsv
        brainjanus compare scores/umbrae --published NSD

    Args:
        results: Folders with a scores.json, or such files; NAME=PATH gives one another name than its path.
        out: File for the table as well: .tsv or .json.
        published: Also show quoted figures of papers on this collection (NSD), where their protocol agrees.
        rois: Also region by region.
        allow: Fields of the protocol that may differ all the same; the differences are then told.
    """

    def run(
        results: Positional[Annotated[tuple[str, ...], arg(metavar="RESULT")]],
        out: Path | None = None,
        published: str | None = None,
        rois: bool = False,
        allow: tuple[str, ...] = (),
    ) -> str:
        from brainjanus.scoring import compare_files
        from brainjanus.tables import print_comparison

        comparison = compare_files(results, out, published=published, rois=rois, allow=allow)
        print_comparison(comparison)
        return "" if out is None else str(out)

    return arguments.parse(compare, run, argv)


def analyse(argv: list[str]) -> Path:
    """Draw the paper's analyses: caption sources, responses to repeats, consistency of responses.

    Examples:
        brainjanus analyse captions --sources git=git.json vlm=vlm.json --references coco.json --out analyses
        brainjanus analyse repeats --dataset data/mine --subject subj01 --out analyses
        brainjanus analyse consistency --dataset data/mine --subject subj01 --out analyses

    Args:
        what: captions (density of scores for several sources of captions), repeats (responses to the repeats of one
            stimulus), or consistency (MSE, cosine and r between responses to one stimulus).
        out: Folder for the picture and its numbers (JSON).
        dataset: Folder of a dataset.
        subject: For repeats and consistency.
        stimulus: For repeats. Default: the one with most repeats.
        sources: For captions: NAME=FILE with captions by stimulus id.
        references: For captions: captions by people, if not the dataset's.
        pictures: For captions with --clip: the pictures, if not the dataset's.
        clip: For captions: folder (or name on the hub) of CLIP ViT-B/32. Without it, agreement with the references.
        seed: Of the floor of consistency.
    """

    def run(
        what: Positional[Annotated[Literal["captions", "repeats", "consistency"], arg(metavar="WHAT")]],
        out: Path,
        dataset: Path | None = None,
        subject: str | None = None,
        stimulus: str | None = None,
        sources: tuple[str, ...] = (),
        references: Path | None = None,
        pictures: Path | None = None,
        clip: str | None = None,
        seed: int = 0,
    ) -> Path:
        from brainjanus.analyse import analyse_captions, analyse_consistency, analyse_repeats

        if what == "captions":
            return analyse_captions(out, sources, dataset=dataset, references=references, pictures=pictures, clip=clip)
        if dataset is None or subject is None:
            missing = " and ".join(name for name, v in (("--dataset", dataset), ("--subject", subject)) if v is None)
            raise UserError(f"analyse {what}: expected {missing}, got none. Name the dataset and whose responses.")
        if what == "repeats":
            return analyse_repeats(dataset, out, subject, stimulus)
        return analyse_consistency(dataset, out, subject, seed)

    return arguments.parse(analyse, run, argv)


def doctor(argv: list[str]) -> str:
    """Say whether a dataset is sound, and whether predictions are for it: a page with traffic lights.

    Exit status: 0 if nothing is red, 1 if something is, 2 if it is no dataset.

    Examples:
        brainjanus doctor data/mine
        brainjanus doctor data/mine --checksums --out reports/mine
        brainjanus doctor data/mine --predictions predicted.npz --subject subj01
        brainjanus doctor data/mine --json

    Args:
        dataset: Folder that `brainjanus prepare` or `brainjanus simulate` wrote.
        out: Folder for doctor.html and doctor.json. Default: DATASET-doctor, beside the dataset.
        predictions: Captions, pictures or responses of any software, as `score` reads them: are ids, order and units
            those of the dataset?
        subject: Whose responses were predicted. Default: the one with as many sites.
        ids: File with the stimulus id of each row of an array of predictions: one a line, or a JSON list.
        split: That was predicted.
        checksums: Read every file and compare its checksum.
        json: Print everything as JSON instead of a table.
    """

    def run(
        dataset: DatasetFolder,
        out: Path | None = None,
        predictions: Path | None = None,
        subject: str | None = None,
        ids: Path | None = None,
        split: Literal["test", "val", "train"] = "test",
        checksums: bool = False,
        json: bool = False,
    ) -> str:
        from brainjanus.doctor import doctor as look
        from brainjanus.doctor import out_of, told

        found = look(dataset, out, predictions, subject=subject, ids=ids, split=split, checksums=checksums)
        if json:
            print(told(found))
        else:
            from brainjanus.tables import print_findings

            print_findings(found.findings, f"{found.dataset} ({found.fingerprint[:12]})")
            print((out or out_of(dataset)) / "doctor.html")
        if found.status:
            raise SystemExit(found.status)
        return ""

    return arguments.parse(doctor, run, argv)


def explore(argv: list[str]) -> str:
    """Look at a trained run in a browser: decode, encode, tokens and scores, on the cortex; the same as an HTTP API.

    The address is printed; Ctrl-C ends it. /api/schema documents the API; `brainjanus.connect` asks it from Python.

    Examples:
        brainjanus explore runs/demo/run
        brainjanus explore runs/mine --host 0.0.0.0 --port 8000

    Args:
        run: Folder that `brainjanus train` wrote.
        dataset: Folder of the dataset. Default: where it was when the run was trained.
        host: On which address of this machine it listens. Other than 127.0.0.1, a token is asked for.
        port: On which port; 0: any that is free.
        token: That requests have to bring. Default: a new one where others can ask, none on this machine alone.
        device: cpu or cuda.
    """

    def run(
        run: RunFolder,
        dataset: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 8765,
        token: str | None = None,
        device: str = "cpu",
    ) -> str:
        from brainjanus.explorer.serve import serve

        serve(run, dataset, host=host, port=port, token=token, device=device)
        return ""

    return arguments.parse(explore, run, argv)


def card(argv: list[str]) -> Path:
    """Write the card of a run or a dataset anew: what it is, what it reaches, its limits and terms.

    `prepare`, `train`, `adapt` and `evaluate` write it by themselves. What you wrote into it stays.

    Examples:
        brainjanus card runs/mine
        brainjanus card runs/mine --scores scores/mine
        brainjanus card data/mine

    Args:
        path: Folder of a run, finished or not, or of a dataset.
        scores: Of the run: scores.json, or its folder. Default: RUN/scores.
    """

    def run(path: Positional[Annotated[Path, arg(metavar="PATH")]], scores: Path | None = None) -> Path:
        from brainjanus.cards import write_card

        return write_card(path, scores)

    return arguments.parse(card, run, argv)


def info(argv: list[str]) -> str:
    """Say what a file or folder is: a dataset, a run, a tokenizer, codes, scores, or someone else's.

    Examples:
        brainjanus info data/mine
        brainjanus info runs/mine/stages/omni
        brainjanus info something.safetensors --json

    Args:
        path: Any file or folder.
        json: Print it as JSON.
    """

    def run(path: Positional[Annotated[Path, arg(metavar="PATH")]], json: bool = False) -> str:
        from brainjanus.info import describe

        found = describe(path)
        print(found.json() if json else found.text())
        return ""

    return arguments.parse(info, run, argv)


COMMANDS: dict[str, Callable[[list[str]], Path | str]] = {
    "demo": demo,
    "simulate": simulate,
    "prepare": prepare,
    "export": export,
    "train": train,
    "tune": tune,
    "tokenize": tokenize,
    "generate": generate,
    "memory": memory,
    "evaluate": evaluate,
    "score": score,
    "compare": compare,
    "analyse": analyse,
    "ablate": ablate,
    "doctor": doctor,
    "card": card,
    "info": info,
    "explore": explore,
    **science.COMMANDS,
}


def config_file(argv: list[str]) -> Path | None:
    """The file behind --config."""
    found = early(argv, "--config")
    return None if found is None else Path(found)


def settings(argv: list[str], command: str) -> Any:
    """Defaults of a run's settings: out of --config, by --recipe, or those that fit the dataset."""
    from brainjanus.recipes import RunConfig, fitting, named

    file, name = config_file(argv), early(argv, "--recipe")
    if name is not None and file is not None:
        raise UserError(f"{command}: expected --recipe or --config, got both. Leave one of them out.")
    if file is not None:
        return RunConfig.load(file)
    return named(name) if name is not None else fitted(argv, fitting, RunConfig())


def fitted(argv: list[str], fit: Callable[[Any], C], otherwise: C) -> C:
    """Defaults that fit the dataset among the arguments; `otherwise` where there is none, as with --help."""
    from brainjanus.data.dataset import Dataset

    found = [word for word in argv if (Path(word) / "dataset.json").is_file()]
    return fit(Dataset.open(found[0])) if found else otherwise
