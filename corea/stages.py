"""Stages of an experiment, each made once: pretraining, reinforcement, evaluation.

A notebook calls a stage and gets its folder, at once if it was made before. The cache key is
everything that affects the result (:mod:`corea.store`): each argument, the stage's own code and
that of the modules it imports, and the versions of packages. How an argument enters:

==================  ============================================================================
``base``, ``model``  a digest of the model's files (:func:`identity`)
``accelerate``       what the configuration says; nothing if it is empty
questions            a digest of them in their order (:func:`digest`)
settings             their fields
a precision           what ``"auto"`` stands for on this machine; nothing if it is empty
a folder of a stage  its name
==================  ============================================================================

Of the engines, only the code of the one that answers counts.

A model is a folder or a hub's name. A training leaves ``model/`` and ``dynamics.csv``, one by
reinforcement also ``validation.csv``, ``selection.csv`` and ``alarms.csv``; ``accelerate`` is the
file of its configuration, empty for this process alone. The answers and decisions of a model are
left as :mod:`corea.engines.evaluation` writes them, swapped ones as ``swapped.parquet``.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from corea.runs import FORMATS
from corea.sources import imported_files
from corea.store import MANIFEST, REQUEST, ROOT, code_digest, keep_up, make

if TYPE_CHECKING:
    from corea.decisions.settings import DecisionSettings
    from corea.engines.base import Sampling
    from corea.rlcc.settings import GRPOSettings
    from corea.tasks.decision_questions import DecisionQuestion
    from corea.tasks.decision_world import DecisionWorld
    from corea.tasks.microworld import Preset, World
    from corea.tasks.questions import Question
    from corea.training.settings import SFTSettings

P = ParamSpec("P")

_OPENING = Path("corea", "engines", "opening.py")
_ENGINES = {
    "transformers": Path("corea", "engines", "transformers_engine.py"),
    "vllm": Path("corea", "engines", "vllm_engine.py"),
    "server": Path("corea", "engines", "server.py"),
}


def stage(build: Callable[Concatenate[Path, P], None]) -> Callable[P, Path]:
    """A function that fills a folder, as one that is called once for the same arguments.

    What it returns takes the arguments but for the folder, and ``root``, the folder of the store;
    it gives the folder of the results. Answers that a server failed to give are asked for again
    by the next call.
    """
    signature = inspect.signature(build)
    _, *parameters = signature.parameters.values()

    @functools.wraps(build)
    def called(*args: P.args, **named: P.kwargs) -> Path:
        root: Any = named.pop("root", ROOT)
        bound = called.__signature__.bind(*args, **named)  # type: ignore[attr-defined]
        bound.apply_defaults()
        arguments = bound.arguments
        # what is fast here is found once, for the key and for what is made
        arguments.update({name: _resolved(name, value) for name, value in arguments.items()})
        engine = arguments.get("engine", "transformers")
        spec = {name: _specified(name, value, engine) for name, value in arguments.items()}
        tree = ast.parse(inspect.getsource(build))
        home = Path(__file__).parent.parent
        code = {path for path in imported_files(tree, ("corea",), home) if path != _OPENING}
        code |= {_ENGINES[engine]} if "engine" in arguments and engine in _ENGINES else set()
        optional = ("accelerate", "precision")
        spec = {name: value for name, value in spec.items() if name not in optional or value}
        keep = keep_up if engine == "server" else make
        return keep(
            build.__name__,
            spec | {"stage": code_digest(tree)},
            lambda folder: build(folder, *bound.args, **bound.kwargs),
            code=sorted(code),
            root=root,
        )

    called.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation="Path"
    )
    return called


def _resolved(name: str, value: Any) -> Any:
    """An argument with the precision that is fast here in place of ``"auto"``."""
    from corea.engines.loading import resolved_precision

    if name == "precision":
        return resolved_precision(value)
    if getattr(value, "precision", "") == "auto":
        return replace(value, precision=resolved_precision("auto"))
    return value


def _specified(name: str, value: Any, engine: str) -> Any:
    """An argument as it enters the key."""
    if name in ("base", "model"):
        return identity(value, engine)
    if name == "accelerate" and value:
        from corea.training.launch import configuration

        return configuration(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return value.name
    if isinstance(value, list | tuple) and value and is_dataclass(value[0]):
        return digest(value)
    return value


@stage
def pretrained(
    folder: Path, world: World, preset: Preset, architecture: str, settings: SFTSettings
) -> None:
    """A microworld model trained from random weights on the world's corpus."""
    from corea.tasks import microworld
    from corea.training.sft import train_sft

    tokenizer = microworld.build_tokenizer(world)
    config = microworld.model_config(
        architecture,
        hidden_size=preset.hidden_size,
        n_layers=preset.n_layers,
        n_heads=preset.n_heads,
        vocab_size=len(tokenizer),
    )
    stated = corpus_world(world, preset)
    rows = microworld.corpus(stated, settings.batch * settings.steps, settings.seed)
    model = microworld.new_model(config, settings.seed)
    train_sft(model, tokenizer, rows, settings, folder)


@stage
def warmed_up(
    folder: Path,
    base: str | Path,
    questions: Sequence[Question],
    settings: SFTSettings,
    *,
    accelerate: str = "",
) -> None:
    """A model that was shown how answers and confidences are written."""
    from corea.engines.loading import load_tokenizer
    from corea.rlcc.warm_up import warm_up_rows
    from corea.training.launch import Job
    from corea.training.sft import train_sft

    rows = warm_up_rows(load_tokenizer(base), questions, settings.seed)
    Job(train_sft, str(base), settings, rows).run(folder, accelerate)


@stage
def reinforced(
    folder: Path,
    base: str | Path,
    questions: Sequence[Question],
    validation: Sequence[Question],
    settings: GRPOSettings,
    *,
    accelerate: str = "",
) -> None:
    """A model trained by GRPO with a confidence reward."""
    from corea.rlcc.trainer import train_grpo
    from corea.training.launch import Job

    Job(train_grpo, str(base), settings, questions, validation).run(folder, accelerate)


@stage
def evaluated(
    folder: Path,
    model: str | Path,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    batch_size: int,
    pooled_states: bool = False,
    engine: str = "transformers",
    precision: str = "",
) -> None:
    """Answers of a model, with its confidence by every signal it states itself."""
    from corea.engines.evaluation import evaluate
    from corea.engines.opening import opened

    with opened(engine, model, batch_size=batch_size, precision=precision) as answering:
        evaluate(
            answering,
            questions,
            system="model",
            sampling=sampling,
            directory=folder,
            pooled_states=pooled_states,
        )


@stage
def decision_pretrained(
    folder: Path, base: str | Path, world: DecisionWorld, settings: SFTSettings
) -> None:
    """A model of the microworld that has learnt to decide, with and without reasoning.

    From random weights the decision world's corpus teaches nothing in this many steps; a model
    that can recall and add already learns it.
    """
    from corea.engines.loading import load_model
    from corea.tasks import decision_world
    from corea.training.sft import train_sft

    model, tokenizer = load_model(base, device="cpu")
    decision_world.extend(model, tokenizer, world, seed=settings.seed)
    rows = decision_world.corpus(world, settings.batch * settings.steps, settings.seed)
    train_sft(model, tokenizer, rows, settings, folder)


@stage
def supervised(
    folder: Path,
    base: str | Path,
    questions: Sequence[DecisionQuestion],
    settings: SFTSettings,
    *,
    accelerate: str = "",
) -> None:
    """A model fine-tuned on right decisions, without reasoning.

    Source: paper B, equation (1). The arguments are those of :func:`reinforced`.
    """
    from corea.decisions.trainer import supervised_rows
    from corea.engines.loading import load_tokenizer
    from corea.training.launch import Job
    from corea.training.sft import train_sft

    rows = supervised_rows(load_tokenizer(base), questions)
    Job(train_sft, str(base), settings, rows).run(folder, accelerate)


@stage
def decisions_warmed_up(
    folder: Path,
    base: str | Path,
    questions: Sequence[DecisionQuestion],
    sampling: Sampling,
    settings: SFTSettings,
    *,
    batch_size: int,
    engine: str = "transformers",
    precision: str = "",
) -> None:
    """A model that was shown the form of decisions (:mod:`corea.decisions.warm_up`).

    ``sampling`` is how it reasons about the questions; what it wrote is left in
    ``reasoning.parquet``.
    """
    import pandas as pd

    from corea.decisions.warm_up import own_reasoning, warm_up_rows
    from corea.engines.opening import opened_here
    from corea.training.launch import Job
    from corea.training.sft import train_sft

    with opened_here(engine, base, batch_size=batch_size, precision=precision) as thinking:
        reasoning = own_reasoning(thinking, questions, sampling)
        rows = warm_up_rows(thinking, questions, reasoning, seed=settings.seed)
    names = {"dataset": [q.dataset for q in questions]}
    names |= {"question_id": [q.question_id for q in questions]}
    table = pd.DataFrame(names | {"reasoning": reasoning})
    table.to_parquet(folder / "reasoning.parquet", index=False)
    Job(train_sft, str(base), settings, rows).run(folder)


@stage
def decisions_reinforced(
    folder: Path,
    base: str | Path,
    questions: Sequence[DecisionQuestion],
    validation: Sequence[DecisionQuestion],
    settings: DecisionSettings,
    *,
    accelerate: str = "",
) -> None:
    """A model trained by GRPO on decisions, with or without the calibration-aware loss.

    The arguments and files are those of :func:`reinforced`.
    """
    from corea.decisions.trainer import train_decisions
    from corea.training.launch import Job

    Job(train_decisions, str(base), settings, questions, validation).run(folder, accelerate)


@stage
def decided(
    folder: Path,
    model: str | Path,
    questions: Sequence[DecisionQuestion],
    sampling: Sampling,
    *,
    reasoning: bool,
    batch_size: int,
    decisions: str = "greedy",
    engine: str = "transformers",
    precision: str = "",
) -> None:
    """The decisions of a model, with the probabilities of the options.

    ``decisions`` says how they are made: :data:`corea.decisions.evaluation.DECIDING`.
    """
    from corea.decisions.evaluation import evaluate_decisions
    from corea.engines.opening import opened_here

    with opened_here(engine, model, batch_size=batch_size, precision=precision) as deciding:
        evaluate_decisions(
            deciding,
            questions,
            system="model",
            sampling=sampling,
            reasoning=reasoning,
            directory=folder,
            decisions=decisions,
        )


def decided_formats(
    model: str | Path,
    questions: Sequence[DecisionQuestion],
    sampling: Sampling,
    *,
    batch_size: int,
    decisions: str = "greedy",
    engine: str = "transformers",
    precision: str = "",
) -> dict[str, Path]:
    """The decisions of a model in each of :data:`corea.runs.FORMATS`, by its name.

    ``sampling`` is how reasoning is drawn; where nothing is drawn each question is decided once.
    """
    drawn_once = replace(sampling, temperature=0.0, n_samples=1)
    return {
        reasoning: decided(
            model,
            questions,
            sampling if reasoning == "sampled" else drawn_once,
            reasoning=reasoning != "none",
            batch_size=batch_size,
            decisions=decisions,
            engine=engine,
            precision=precision,
        )
        for reasoning in FORMATS
    }


@stage
def swapped(
    folder: Path,
    model: str | Path,
    questions: Sequence[DecisionQuestion],
    decisions: Path,
    shares: Sequence[float],
    *,
    max_completion_tokens: int,
    batch_size: int,
    seed: int,
    engine: str = "transformers",
    precision: str = "",
) -> None:
    """What a model decides behind the reasoning of other questions.

    ``decisions`` are the model's own on them, ``shares`` those of the foreign reasoning, and
    ``seed`` is that of the donors.
    """
    from corea.decisions.evaluation import swap_reasoning
    from corea.engines.evaluation import read_samples
    from corea.engines.opening import opened_here

    with opened_here(engine, model, batch_size=batch_size, precision=precision) as deciding:
        table = swap_reasoning(
            deciding,
            questions,
            read_samples(decisions),
            shares=shares,
            max_completion_tokens=max_completion_tokens,
            seed=seed,
        )
    table.to_parquet(folder / "swapped.parquet", index=False)


@stage
def router(
    folder: Path,
    base: str | Path,
    questions: Sequence[Question],
    answers: Path,
    settings: SFTSettings,
    *,
    accelerate: str = "",
) -> None:
    """A router trained to say how often a model answers a question right.

    ``answers`` are the model's to these training questions, from :func:`evaluated`.
    """
    from corea.engines.evaluation import read_samples
    from corea.engines.loading import load_tokenizer
    from corea.rlcc.learned_confidence import prompted_rows
    from corea.training.launch import Job
    from corea.training.sft import train_sft

    rows = prompted_rows(load_tokenizer(base), questions, read_samples(answers))
    Job(train_sft, str(base), settings, rows).run(folder, accelerate)


def corpus_world(world: World, preset: Preset) -> World:
    """The world as the corpus of one size of model states it, with the noise of that size."""
    shares = world.name_shares if preset.name_shares is None else preset.name_shares
    return replace(world, name_shares=shares)


def count_weights(model: str | Path) -> int:
    """How many weights the files of a model (folder or hub name) hold; shared ones count once."""
    from safetensors import safe_open

    from corea.engines.loading import model_folder

    total = 0
    for path in sorted(model_folder(model).glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  not a mapping
                total += math.prod(weights.get_slice(name).get_shape())
    return total


def identity(model: str | Path, engine: str = "transformers") -> str:
    """What a model is, whatever its folder is called: a digest of its files.

    Of a hub's model it is its name and commit; of a server's, unless its files are in a folder
    here, the name under which the server has it.
    """
    from corea.engines.gguf_files import is_gguf
    from corea.engines.loading import model_folder

    if engine == "server" and not Path(model).is_dir():
        return str(model)
    folder = model_folder(model)
    if not Path(model).is_dir() and not is_gguf(model):
        return f"{str(model).partition('@')[0]}@{folder.name}"
    total = hashlib.sha256()
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, REQUEST))
    for path in sorted(files):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def digest(questions: Sequence[Question] | Sequence[DecisionQuestion]) -> str:
    """SHA-256 of questions in their order, in hexadecimal."""
    text = json.dumps([asdict(question) for question in questions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
