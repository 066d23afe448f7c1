"""Calibration, certified thresholds and cascades on any records, and the book about them.

Exit status: 0, 1 where something is wrong, 2 for words that are no command, 4 where no threshold
can be certified, 130 when interrupted. Errors are one line; --debug shows where they arose.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

if TYPE_CHECKING:
    from corea.records import Records
    from corea.thresholds.certify import Promise

NOTHING_CERTIFIED = 4

app = typer.Typer(
    name="corea",
    help=__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_RECORDS = "Your own records"
_BOOK = "The book, from the root of the repository"

RecordsFile = Annotated[
    Path, typer.Argument(help="Records: .csv, .tsv, .jsonl (each also .gz) or .parquet.")
]
Small = Annotated[str, typer.Option(help="System that answers first.")]
Large = Annotated[str, typer.Option(help="System that is deferred to.")]
Dataset = Annotated[str, typer.Option(help="Only questions of this dataset.")]
Signal = Annotated[str, typer.Option(help="Column that the confidence is read from.")]
Rename = Annotated[
    list[str] | None,
    typer.Option("--rename", help="COLUMN=NAME: a column of the file is one of the records'."),
]
Within = Annotated[
    float | None, typer.Option(help="Points of accuracy that may be lost against the large one.")
]
Accuracy = Annotated[float | None, typer.Option(help="Accuracy to keep, in percent.")]
Disagreement = Annotated[
    float | None,
    typer.Option(help="Percent of answers that may differ from the large one's: needs no golds."),
]
Budget = Annotated[float | None, typer.Option(help="Mean cost of a question; needs --max-cost.")]
MaxCost = Annotated[float | None, typer.Option(help="The most that one question can cost.")]
Delta = Annotated[float, typer.Option(help="Probability, at most, that the promise is broken.")]
SizeRatio = Annotated[float, typer.Option(help="Parameters of the large model over the small's.")]
OutputPrice = Annotated[float, typer.Option(help="Price of an output token in input tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.")]
Profile = Annotated[str, typer.Argument(help="Name of a file in profiles/, without its end.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error arose.")] = False,
) -> None:
    """Take in what holds for all commands; ``--debug`` is read by :func:`main`."""


@contextmanager
def _working(on: str) -> Iterator[None]:
    """Say what is being done while it is, on a terminal only."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(on):
        yield


def _read(
    path: Path, rename: list[str] | None, dataset: str = "", *, judged: bool = True
) -> Records:
    """Records of a file, with its columns renamed, of one dataset or all."""
    from dataclasses import replace

    from corea.records import read_records, select

    names = dict(_pair(each, "--rename", "COLUMN=NAME") for each in rename or [])
    with _working(f"reading {path.name}"):
        records = read_records(path, names=names, judged=judged)
    if dataset:
        records = replace(records, table=select(records.table, dataset=dataset))
    return records


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    left, sign, right = text.partition("=")
    if not (left and sign and right):
        raise ValueError(f"{option} is {text!r}; expected {form}")
    return left, right


def _promise(
    within: float | None,
    at_least: float | None,
    disagreement: float | None,
    budget: float | None,
    max_cost: float | None,
    delta: float,
) -> Promise:
    """The one promise that was asked for; within 2 points where none was."""
    from corea.thresholds.certify import Promise

    shares = {"within": within, "at_least": at_least, "disagreement": disagreement}
    asked: dict[str, float] = {k: v / 100 for k, v in shares.items() if v is not None}
    if budget is not None:
        asked["budget"] = budget
    if len(asked) > 1:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise ValueError(f"{names}: a threshold keeps one promise; expected one of them")
    kind, level = next(iter(asked.items()), ("within", 0.02))
    if 0 < level < 0.001 and kind != "budget":
        raise ValueError(
            f"--{kind.replace('_', '-')} is {100 * level:g} %: points and percent are expected, "
            "such as 2"
        )
    return Promise(kind, level, delta, max_cost)  # type: ignore[arg-type]


@app.command(rich_help_panel=_RECORDS)
def report(
    records: RecordsFile,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    small: Small = "",
    large: Large = "",
    dataset: Dataset = "",
    signal: Signal = "confidence",
    within: Within = None,
    at_least: Accuracy = None,
    disagreement: Disagreement = None,
    budget: Budget = None,
    max_cost: MaxCost = None,
    delta: Delta = 0.05,
    size_ratio: SizeRatio = 10.0,
    output_price: OutputPrice = 4.0,
    rename: Rename = None,
    seed: Seed = 0,
) -> None:
    """Write one HTML page on a file of records: calibration, deferral, threshold, what to do."""
    from corea.report import report as report_on
    from corea.store import write_atomically

    promise = _promise(within, at_least, disagreement, budget, max_cost, delta)
    found = _read(records, rename, dataset)
    with _working("measuring and drawing"):
        page, _ = report_on(
            found, small=small, large=large, promise=promise, signal=signal,
            size_ratio=size_ratio, output_price=output_price, seed=seed,
        )  # fmt: skip
    write_atomically(out, page)
    typer.echo(out)


@app.command(rich_help_panel=_RECORDS)
def fit(
    records: RecordsFile,
    out: Annotated[Path, typer.Option(help="The card to write.")] = Path("card.json"),
    small: Small = "",
    large: Large = "",
    dataset: Dataset = "",
    signal: Signal = "confidence",
    within: Within = None,
    at_least: Accuracy = None,
    disagreement: Disagreement = None,
    budget: Budget = None,
    max_cost: MaxCost = None,
    delta: Delta = 0.05,
    size_ratio: SizeRatio = 10.0,
    output_price: OutputPrice = 4.0,
    rename: Rename = None,
) -> None:
    """Certify the cheapest threshold that keeps a promise and write its card; 4 if none does."""
    from corea.metrics.cascade import small_and_large
    from corea.thresholds.certify import certify_records

    promise = _promise(within, at_least, disagreement, budget, max_cost, delta)
    found = _read(records, rename, dataset)
    small, large = small_and_large(found.table, small, large)
    if not large:
        raise ValueError(
            f"{found.source}: one system only; a cascade needs a large model's records"
        )
    with _working("certifying"):
        card, _, notes = certify_records(
            found, small, large, promise, signal=signal, size_ratio=size_ratio,
            output_price=output_price,
        )  # fmt: skip
    for note in [*found.notes, *notes]:
        _say(note, err=True)
    _say(card.describe())
    if card.threshold is None:
        raise typer.Exit(NOTHING_CERTIFIED)
    card.save(out)
    typer.echo(out)


@app.command(rich_help_panel=_RECORDS)
def route(
    card: Annotated[Path, typer.Argument(help="A card that fit wrote.")],
    records: RecordsFile,
    out: Annotated[Path, typer.Option(help="The table to write, .csv.")] = Path("routed.csv"),
    rename: Rename = None,
) -> None:
    """Say for each record of the small model whether it goes to the large one, and why.

    The records need no column correct.
    """
    from corea.store import write_atomically
    from corea.thresholds.card import Card

    chosen = Card.load(card)
    routed = chosen.route(_read(records, rename, judged=False).table)
    routed = routed.drop(columns="correct")
    write_atomically(out, routed.to_csv(index=False))
    share = routed["deferred"].mean()
    _say(
        f"{routed['deferred'].sum():,} of {len(routed):,} deferred ({share:.1%}), to {chosen.large}"
    )
    typer.echo(out)


@app.command("import", rich_help_panel=_RECORDS)
def import_records(
    format: Annotated[
        str,
        typer.Argument(
            help="lm-eval, inspect, helm, routerbench, routerarena, batch, promptfoo or "
            "every-eval-ever."
        ),
    ],
    files: Annotated[list[Path], typer.Argument(help="Files of that format, read as one table.")],
    out: Annotated[Path, typer.Option(help="The records to write, .parquet.")] = Path(
        "records.parquet"
    ),
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="NAME=VALUE: an option of the format's reader."),
    ] = None,
) -> None:
    """Read what another harness wrote, and write it as records."""
    from corea.adapters import read
    from corea.records import write_records

    options = dict(_pair(each, "--option", "NAME=VALUE") for each in option or [])
    with _working(f"reading {', '.join(file.name for file in files)}"):
        found = read(format, files, **options)
    _say(str(found))
    write_records(found, out)
    typer.echo(out)


@app.command(rich_help_panel=_RECORDS)
def serve(
    card: Annotated[Path, typer.Argument(help="A card that fit wrote.")],
    small_url: Annotated[str, typer.Option(help="The small model's API, with its /v1.")],
    large_url: Annotated[str, typer.Option(help="The large model's API, with its /v1.")],
    small_model: Annotated[str, typer.Option(help="Its name there; the card's if empty.")] = "",
    large_model: Annotated[str, typer.Option(help="Its name there; the card's if empty.")] = "",
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond loopback COREA_API_KEY must be set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8080,
    answers: Annotated[Path, typer.Option(help="The log of answers.")] = Path("answered.jsonl"),
    keep_text: Annotated[bool, typer.Option(help="Keep prompts and answers in the log.")] = False,
    audit: Annotated[
        float, typer.Option(help="Share of questions that the large model is asked anyway.")
    ] = 0.0,
    when_large_fails: Annotated[str, typer.Option(help="degrade or error.")] = "degrade",
    vllm: Annotated[bool, typer.Option(help="Both servers take vLLM's own parameters.")] = True,
) -> None:
    """Serve a cascade behind OpenAI's API until it is told to end; keys come from the environment.

    COREA_API_KEY is what clients must bring, COREA_SMALL_KEY and OPENAI_API_KEY what the two
    servers ask for.
    """
    from corea.serving.serve import serve as serve_cascade

    serve_cascade(
        card, small_url, large_url, small_model=small_model, large_model=large_model, host=host,
        port=port, answers=answers, keep_text=keep_text, audit=audit, vllm=vllm,
        when_large_fails=when_large_fails,
    )  # fmt: skip


@app.command(rich_help_panel=_BOOK)
def build(profile: Profile) -> None:
    """Make what is missing or changed of a profile, and its book."""
    from corea.workflow.pipeline import build as build_book

    _at_home()
    typer.echo(build_book(_load(profile)))


@app.command(rich_help_panel=_BOOK)
def rehearse(
    profile: Profile,
    model: Annotated[
        str,
        typer.Option(help="Folder or GGUF file of the model that stands in; a tiny one if empty."),
    ] = "",
) -> None:
    """Execute every run of a profile on CPUs, with a small model and few steps."""
    from corea.workflow.rehearse import rehearse as rehearse_profile

    _at_home()
    typer.echo(rehearse_profile(profile, model))


@app.command(rich_help_panel=_BOOK)
def execute(profile: Profile, run: Annotated[str, typer.Argument(help="Name of a run.")]) -> None:
    """Execute one run."""
    from corea.workflow import PipelineError
    from corea.workflow.execute import execute as execute_run
    from corea.workflow.models import fetch_models

    _at_home()
    loaded = _load(profile)
    if run not in loaded.runs:
        raise PipelineError(f"profile {loaded.name} has no run {run!r}")
    fetch_models(loaded)
    execute_run(loaded, loaded.runs[run])


@app.command(rich_help_panel=_BOOK)
def render(profile: Profile) -> None:
    """Render the pages of results that are there."""
    from corea.workflow.render import render as render_pages

    _at_home()
    render_pages(_load(profile))


@app.command(rich_help_panel=_BOOK)
def parameters(profile: Profile) -> None:
    """Write the parameter files, for running a notebook by hand."""
    from corea.workflow.execute import write_parameters

    _at_home()
    print(*write_parameters(_load(profile)), sep="\n")


@app.command(rich_help_panel=_BOOK)
def plan(
    profile: Profile,
    device: Annotated[str, typer.Option(help="Estimate for this device.")] = "",
    publish: Annotated[bool, typer.Option(help="Keep in the package what it took.")] = False,
) -> None:
    """Say what a profile takes, what is done and what is missing."""
    from corea.workflow.plan import publish as publish_times
    from corea.workflow.plan import write_plan

    loaded = _load(profile)
    if publish:
        publish_times(loaded)
    else:
        print(write_plan(loaded, device))


@app.command(rich_help_panel=_BOOK)
def publish(
    profile: Profile,
    run: Annotated[list[str] | None, typer.Argument(help="Runs; all that chapters read.")] = None,
) -> None:
    """Copy small tables of a full run into the package."""
    from corea.workflow.publish import publish as publish_tables
    from corea.workflow.publish import tell

    print(*tell(publish_tables(_load(profile), run or [])), sep="\n")


@app.command(rich_help_panel=_BOOK)
def claims(
    tables: Annotated[
        Path | None, typer.Option(help="Decide on the tables of a run in this folder.")
    ] = None,
    paper: Annotated[str, typer.Option(help="Only claims of this paper: A or B.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For other programs.")] = False,
) -> None:
    """Decide what both papers claim on the committed tables; 1 if evidence is missing."""
    from corea.book.claims import show

    raise typer.Exit(show(tables, paper, as_json=as_json))


def _load(profile: str) -> Any:
    from corea.workflow.profiles import load_profile

    return load_profile(profile)


def _at_home() -> None:
    from corea.workflow.pipeline import writable_home

    writable_home()


def _say(text: str, *, err: bool = False) -> None:
    """Print lines that may hold names from a stranger's file."""
    from corea.book.display import visible

    for line in text.splitlines():
        typer.echo(visible(line), err=err)


def _one_line(error: Exception) -> str:
    """What went wrong, in one line; how to see more where there is more."""
    from corea.records import RecordsError

    if isinstance(error, RecordsError):
        more = len(error.problems) - 1
        rest = f" (and {more:,} more; --debug shows the first)" if more else ""
        return f"{error.source}: {error.problems[0]}{rest}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = sys.argv[1:] if arguments is None else [*arguments]
    debug = "--debug" in words
    for number in (signal.SIGTERM, signal.SIGHUP):  # unwind, as for an interrupt
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores the second
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    command = typer.main.get_command(app)
    try:
        status = command.main(args=words, prog_name="corea", standalone_mode=False)
    except TyperException as error:
        error.show()  # type: ignore[attr-defined]
        return int(error.exit_code)
    except (KeyboardInterrupt, Abort):
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        return _told(error, debug=debug)
    return int(status or 0)


def _told(error: Exception, *, debug: bool) -> int:
    """Say an error that a reader can act on; raise one that is ours."""
    from corea.book.display import visible
    from corea.workflow import PipelineError

    if debug:
        raise error
    if isinstance(error, PipelineError):  # its lines are what the pipeline has to say
        print(error, flush=True)
        return 1
    if isinstance(error, FileNotFoundError | ValueError):
        print(visible(_one_line(error)), file=sys.stderr, flush=True)
        return 1
    if isinstance(error, OSError):
        from corea.workflow.pipeline import refusal

        print(refusal(error), flush=True)
        return 1
    raise error


if __name__ == "__main__":
    sys.exit(main())
