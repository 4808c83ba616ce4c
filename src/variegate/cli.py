"""The command line: parse, call, print. Exit 0 done, 1 a task failed, 2 the command, recipe or data is wrong, 130 stopped by Ctrl-C."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from variegate.ending import STOPPED, STOPPED_TEXT, is_from_ctrl_c
from variegate.errors import Problem, UserError, VariegateError

EXAMPLES = """\b
Examples:
  variegate run                              the whole job on drawn butterflies
  variegate run photos/ --recipe real-mix    on a folder of class folders
  variegate plan photos/                     what that would cost; touches nothing
"""


app = typer.Typer(
    name="variegate",
    help="Turn a small folder of labelled images into a better image classifier, and say honestly whether it helped.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")

Data = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA",
        help="Folder of class folders, .csv/.jsonl/.parquet, hf:org/name, builtin:meadow or builtin:digits.",
    ),
]
RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="A shipped recipe or a YAML file.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Run folder [default: runs/NAME].")]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change any recipe key; may be repeated.")
]
Workers = Annotated[
    int, typer.Option("--workers", "-w", min=1, max=512, help="Processes that draw; with GPUs one for each.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on standard output.")]


def run_cli(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; a reader that has seen enough (`| head`) is no failure."""
    status = _run_command(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left is flushed again when the interpreter exits, which would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _run_command(arguments: list[str] | None) -> int:
    try:
        status = app(arguments, standalone_mode=False)  # typer turns Ctrl-C into a returned 130
    except SystemExit as exc:
        if isinstance(exc.__context__, BrokenPipeError):  # typer's answer to it is exit 1
            return 0
        raise
    except BaseException as exc:
        if is_from_ctrl_c(exc):
            return _stopped()
        if isinstance(exc, VariegateError):
            return _complain(f"error: {exc}", 2 if isinstance(exc, UserError) else 1)
        return _click_status(exc)
    return _stopped() if status == STOPPED else status or 0


def _click_status(exc: BaseException) -> int:
    """Usage errors of the parser become exit 2; anything else is a bug and keeps its traceback."""
    if hasattr(exc, "show") and hasattr(exc, "exit_code"):
        exc.show()
        return int(exc.exit_code)
    if type(exc).__name__ == "Abort":
        return _stopped()
    if type(exc).__name__ == "Exit" and hasattr(exc, "exit_code"):
        return int(exc.exit_code)
    raise exc


def _stopped() -> int:
    return _complain(STOPPED_TEXT, STOPPED)


def _complain(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status


def _run(
    data: str | None, recipe: str, out: Path | None, overrides: list[str] | None, workers: int, as_json: bool, last: str
) -> None:
    from variegate.api import run
    from variegate.progress import TerminalReporter

    result = run(
        data, recipe, out, overrides=overrides or (), workers=workers, last=last, reporter_class=TerminalReporter
    )
    if as_json:
        answer = {
            "folder": str(result.folder),
            "verdict": result.verdict,
            "results": result.results,
            "stages": result.summaries,
        }
        print(json.dumps(answer, ensure_ascii=False, indent=1))
        return
    if last == "report":
        print(f"report: {result.folder / 'report.html'}")
    elif last == "adapt":
        print(f"adapter: {result.folder / 'adapt'}")
    elif last == "curate":
        print(f"images: {result.folder / 'synthetic' / 'train'}")
    print(result.verdict)


def _add_pipeline_command(name: str, last: str, text: str) -> None:
    """The same pipeline, stopping after the stage `last`."""

    def command(
        data: Data = None,
        recipe: RecipeOption = "variegate",
        out: Out = None,
        overrides: Set = None,
        workers: Workers = 1,
        as_json: Json = False,
    ) -> None:
        _run(data, recipe, out, overrides, workers, as_json, last)

    app.command(name, help=text)(command)


for _command in (
    (
        "run",
        "report",
        "Do the whole job: draw images, train with and without them, and say whether they helped. Run again to resume.",
    ),
    ("adapt", "adapt", "Teach the drawing model the classes; writes adapt/, which stock diffusers loads."),
    ("generate", "curate", "Draw and curate the images, train nothing."),
    ("train", "train", "Draw, curate and train; no comparison and no report yet."),
):
    _add_pipeline_command(*_command)


@app.command()
def plan(
    data: Data = None,
    recipe: RecipeOption = "variegate",
    overrides: Set = None,
    measure: Annotated[bool, typer.Option(help="Time a small chunk to estimate seconds.")] = True,
    as_json: Json = False,
) -> None:
    """Say what run would make and cost: images, steps, time, disk, memory. Touches nothing."""
    from variegate.api import check, settle
    from variegate.stages.curate.estimate import estimate as estimate_curate
    from variegate.stages.generate.stage import estimate
    from variegate.stages.prompts.stage import estimate as estimate_prompts
    from variegate.stages.refine.stage import estimate as estimate_refine
    from variegate.stages.train.stage import estimate as estimate_train

    settled = settle(data, recipe, overrides or ())
    facts = check(settled)["data"]
    drawing = estimate(settled, facts, measure=measure)
    counts = {split: [one[info.name] for info in facts.classes] for split, one in facts.counts().items()}
    answer: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for part in (
        drawing,
        estimate_prompts(settled, facts.classes),
        estimate_refine(settled, facts.classes, drawing["images"], measure=measure),
        estimate_curate(settled, counts["train"], drawing["images"], measure=measure),
        estimate_train(settled, counts, drawing["images"], measure=measure),
    ):
        seconds |= part.pop("seconds", {})
        answer |= part
    if measure:
        answer["seconds"] = seconds | {"total": round(sum(seconds.values()), 1)}
    print(json.dumps(answer, ensure_ascii=False, indent=1) if as_json else _plan_text(answer))


def _plan_text(answer: dict[str, Any]) -> str:
    from variegate.progress import clock

    shown = answer | {"seconds": {stage: clock(value) for stage, value in answer.get("seconds", {}).items()}}
    shown = {"time" if key == "seconds" else key: value for key, value in shown.items() if value != {}}
    return "\n".join(f"{key.replace('_', ' '):<24}{_shown(value)}" for key, value in shown.items())


def _shown(value: Any) -> str:
    if isinstance(value, dict) and len(value) > 2 and len(set(map(str, value.values()))) == 1:
        return f"{_shown(next(iter(value.values())))} each, {len(value):,} classes"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


@app.command()
def compare(
    data: Data = None,
    recipes: Annotated[
        str, typer.Option("--recipes", "-r", metavar="A,B,...", help="Shipped recipes or YAML files, with commas.")
    ] = "variegate",
    draws: Annotated[int, typer.Option(min=1, max=1000, help="Choices of the training images.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Classifiers of each method and draw.")] = 1,
    shots: Annotated[
        str, typer.Option(metavar="K,K", help="Training images a class, each compared apart [default: the recipe's].")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="[default: runs/NAME-compare].")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(metavar="FOLDER|DATA", help="Images to retrieve from, as another baseline.")
    ] = None,
    curves: Annotated[
        list[str] | None,
        typer.Option("--curve", metavar="[RECIPE:]KEY=V,V", help="A recipe at several values, on validation images."),
    ] = None,
    skip: Annotated[
        str,
        typer.Option(
            metavar="ARM,ARM",
            help="Leave out: randaugment, trivialaugment, mixup, cutmix, duplicated, text-only, best-classic.",
        ),
    ] = "",
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Every N-th draw, from the I-th: N machines share one DIR out.")
    ] = "",
    overrides: Set = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            "-w",
            min=1,
            max=512,
            help="On a CPU draws at a time, each on its share of the cores; with GPUs processes that draw images, one for each.",
        ),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Compare recipes with each other and with what needs no drawing, paired, with intervals. Run again to add to it."""
    from variegate.api import compare
    from variegate.progress import BriefReporter

    found = compare(
        data,
        _words(recipes),
        draws=draws,
        seeds=seeds,
        shots=_numbers("--shots", shots),
        out=out,
        pool=pool,
        curves=curves or (),
        skip=_words(skip),
        overrides=overrides or (),
        workers=workers,
        shard=_shard(shard),
        reporter_class=BriefReporter,
    )
    if as_json:
        print(json.dumps({"folder": str(found.folder), "results": found.results}, ensure_ascii=False, indent=1))
        return
    if found.results:
        print(f"report: {found.folder / 'report.html'}")
    print(found.verdict)


def _shard(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(Problem(f"--shard {text}", "is no part of a whole", "for example --shard 1/3"))
    return int(parts[0]), int(parts[1])


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers above 0, each once, rising."""
    words = _words(text)
    wrong = [word for word in words if not word.isascii() or not word.isdigit() or int(word) < 1]
    if wrong:
        raise UserError(
            Problem(f"{option} {text}", f"{wrong[0]!r} is no number of images", f"for example {option} 5,20")
        )
    return sorted({int(word) for word in words})


@app.command()
def ablate(
    data: Data = None,
    recipe: RecipeOption = "variegate",
    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="KEY=V,V", help="Values to try of a recipe key; may be repeated."),
    ] = None,
    trainings: Annotated[int, typer.Option("--trainings", min=1, help="Classifiers to train at most.")] = 60,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder [default: runs/NAME-ablation].")
    ] = None,
    overrides: Set = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Try settings of a recipe on validation images, and write the best of them as a recipe, or say: don't."""
    from variegate.ablation.study import RECIPE, TABLE
    from variegate.ablation.study import ablate as study
    from variegate.progress import BriefReporter

    found = study(
        data,
        recipe,
        out,
        over=over or (),
        max_trainings=trainings,
        overrides=overrides or (),
        workers=workers,
        reporter_class=BriefReporter,
    )
    if as_json:
        print(json.dumps({"folder": str(found.folder), **found.results}, ensure_ascii=False, indent=1))
        return
    print(f"table: {found.folder / TABLE}; recipe: {found.folder / RECIPE}")
    print(found.verdict)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write report.html, report.md and summary.json of a run again."""
    from variegate.stages.report.stage import write_report
    from variegate.store import RunFolder

    with RunFolder.read(folder) as opened:
        print(write_report(opened, None))


@app.command()
def quality(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with synthetic images.")],
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", "-e", metavar="NAME", help="Features: auto, clip:NAME, clip:FOLDER, timm:NAME, timm:FOLDER."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a run's synthetic images against held-out real ones and look for copies; writes quality.json."""
    from variegate.api import measure_quality
    from variegate.card import QUALITY
    from variegate.image_quality.run import as_text
    from variegate.progress import TerminalReporter

    found = measure_quality(folder, encoder, reporter=TerminalReporter())
    print(json.dumps(found, ensure_ascii=False, indent=1) if as_json else f"{as_text(found)}\n{folder / QUALITY}")


@app.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(metavar="FILE|DIR", help="What another tool wrote; the kind is told from its content.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="New folder to write; without it, only look.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="starter or a model folder: check that it fits.")
    ] = None,
    classes: Annotated[
        list[Path] | None,
        typer.Option(
            "--classes", metavar="FILE", help="Class names, one a line, where the artefact has none or misspells them."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read learned tokens, LoRA, prompts, image tables, results or filters of other tools."""
    from variegate.importers import as_text, import_artefact

    record = import_artefact(path, out, base=base, classes=classes or ())
    print(json.dumps(record, ensure_ascii=False, indent=1) if as_json else as_text(record))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, and the remedy for each gap."""
    from variegate.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps(findings, ensure_ascii=False, indent=1))
        return
    for finding in findings:
        remedy = f" — {finding['remedy']}" if finding["remedy"] else ""
        print(f"{finding['state']:<8}{finding['what']:<18}{finding['found']}{remedy}")


@recipes_app.command("ls")
def recipes_ls(as_json: Json = False) -> None:
    """List the shipped recipes, one line each."""
    from variegate.recipe_file import RECIPES, recipe_names

    lines = {
        name: (RECIPES / f"{name}.yaml")
        .read_text(encoding="utf-8")
        .splitlines()[0]
        .lstrip("# ")
        .removeprefix(f"{name}: ")
        for name in recipe_names()
    }
    width = max(map(len, lines)) + 2
    print(
        json.dumps(lines, indent=1) if as_json else "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())
    )


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a recipe as it is written."""
    from variegate.recipe_file import find_recipe

    print(find_recipe(name).read_text(encoding="utf-8"), end="")


@recipes_app.command("cp")
def recipes_cp(
    name: Annotated[str, typer.Argument(metavar="NAME")], file: Annotated[Path, typer.Argument(metavar="FILE")]
) -> None:
    """Copy a recipe to a file of your own; never overwrites."""
    from variegate.errors import RecipeError
    from variegate.recipe_file import find_recipe

    text = find_recipe(name).read_bytes()
    try:
        with file.open("xb") as target:
            target.write(text)
    except FileExistsError as exc:
        raise RecipeError(Problem(str(file), "exists already", "choose another name")) from exc
    except OSError as exc:
        raise RecipeError(Problem(str(file), f"cannot be written: {exc.strerror}")) from exc
    print(f"{file}; change it, then: variegate run DATA --recipe {file}")


@recipes_app.command("validate")
def recipes_validate(file: Annotated[str, typer.Argument(metavar="FILE")], overrides: Set = None) -> None:
    """Check a recipe and name every problem."""
    from variegate.recipe_file import load_recipe

    load_recipe(file, overrides or ())
    print(f"{file}: valid")
