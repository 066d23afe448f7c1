"""Stages of an experiment, each made once: pretraining, reinforcement, evaluation.

What decides a stage's result makes its entry in the store (:mod:`corea.store`): the weights it
starts from, the questions, the settings, the code and the versions. A notebook calls a stage and
gets its folder, at once if it was made before.

A model that exists is trained in the notebook's process or, where the file of an accelerate
configuration is given, in several others (:mod:`corea.training.launch`); what that file says then
decides the result too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corea.store import MANIFEST, ROOT, keep_up, make

if TYPE_CHECKING:
    from corea.decisions.trainer import DecisionSettings
    from corea.engines.generate import Sampling
    from corea.rlcc.trainer import GRPOSettings
    from corea.tasks.decision_questions import DecisionQuestion
    from corea.tasks.decision_world import DecisionWorld
    from corea.tasks.microworld import Preset, World
    from corea.tasks.questions import Question
    from corea.training.launch import Job
    from corea.training.settings import SFTSettings


_ENGINE_MODULES = {
    "transformers": ("engines.generate",),
    "vllm": ("engines.vllm_engine",),
    "server": ("engines.server",),
}


def pretrained(
    world: World,
    preset: Preset,
    architecture: str,
    settings: SFTSettings,
    *,
    root: str | Path = ROOT,
) -> Path:
    """A microworld model trained from random weights on the world's corpus.

    Args:
        world: What the corpus says, but for the names the preset knows better.
        preset: Size of the model, and how many names its corpus states surely.
        architecture: ``"qwen2"``, ``"llama"`` or ``"qwen3"``.
        settings: Of the training; the seed is also that of the weights and the corpus.
        root: Folder of the store.

    Returns:
        Folder with ``model/`` and ``dynamics.csv``.
    """

    def build(folder: Path) -> None:
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
        said = corpus_world(world, preset)
        rows = microworld.corpus(said, settings.batch * settings.steps, settings.seed)
        model = microworld.new_model(config, settings.seed)
        train_sft(model, tokenizer, rows, settings, folder)

    spec = {
        "world": asdict(world),
        "preset": asdict(preset),
        "architecture": architecture,
        "settings": asdict(settings),
    }
    return make("pretrain", spec, build, modules=("training.sft", "tasks.microworld"), root=root)


def reinforced(
    base: str | Path,
    questions: Sequence[Question],
    validation: Sequence[Question],
    settings: GRPOSettings,
    *,
    accelerate: str = "",
    root: str | Path = ROOT,
) -> Path:
    """A model trained by GRPO with a confidence reward.

    Args:
        base: Folder or hub name of the model to start from.
        questions: To train on.
        validation: Held out, for checkpoint selection.
        settings: Of the training.
        accelerate: File of an accelerate configuration; empty: train in this process.
        root: Folder of the store.

    Returns:
        Folder with ``model/``, ``dynamics.csv``, ``validation.csv``, ``selection.csv`` and
        ``alarms.csv``.
    """
    return _on_rollouts(
        "grpo",
        "grpo",
        ("rlcc.trainer", "training.launch"),
        base,
        questions,
        validation,
        settings,
        accelerate,
        root,
    )


def evaluated(
    model: str | Path,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    batch_size: int,
    pooled_states: bool = False,
    engine: str = "transformers",
    root: str | Path = ROOT,
) -> Path:
    """The answers of a model to questions, with its confidence by every signal it states itself.

    A server has no expected confidence and no hidden states. Answers that it failed to give are
    asked for again by the next call.

    Args:
        model: Folder or hub name; for a server the name under which it has the model.
        questions: To ask.
        sampling: How.
        batch_size: Completions at once.
        pooled_states: Whether pooled hidden states are kept, for a probe.
        engine: What answers, one of :data:`corea.engines.opening.ENGINES`.
        root: Folder of the store.

    Returns:
        The folder :func:`corea.engines.evaluation.evaluate` wrote.
    """
    served = engine == "server"

    def build(folder: Path) -> None:
        from corea.engines.evaluation import evaluate
        from corea.engines.opening import opened

        with opened(engine, model, batch_size=batch_size) as answering:
            evaluate(
                answering,
                questions,
                system="model",
                sampling=sampling,
                directory=folder,
                pooled_states=pooled_states,
            )

    spec = {
        "model": identity(model, engine),
        "questions": digest(questions),
        "sampling": asdict(sampling),
        "batch_size": batch_size,
        "pooled_states": pooled_states,
        "engine": engine,
    }
    modules = ("engines.evaluation", *_ENGINE_MODULES.get(engine, ()))
    # answers that a server failed to give are asked for by the next call
    keep = keep_up if served else make
    return keep("evaluation", spec, build, modules=modules, root=root)


def decision_pretrained(
    base: str | Path,
    own: DecisionWorld,
    settings: SFTSettings,
    *,
    root: str | Path = ROOT,
) -> Path:
    """A model of the microworld that has learnt to decide, with and without reasoning.

    From random weights the decision world's corpus teaches nothing in this many steps; a model
    that can recall and add already learns it.

    Args:
        base: Folder of the microworld model to start from.
        own: What the corpus says.
        settings: Of the training; the seed is also that of the corpus.
        root: Folder of the store.

    Returns:
        Folder with ``model/`` and ``dynamics.csv``.
    """

    def build(folder: Path) -> None:
        from corea.engines.models import load_model
        from corea.tasks import decision_world
        from corea.training.sft import train_sft

        model, tokenizer = load_model(base, device="cpu")
        decision_world.extend(model, tokenizer, own, seed=settings.seed)
        rows = decision_world.corpus(own, settings.batch * settings.steps, settings.seed)
        train_sft(model, tokenizer, rows, settings, folder)

    spec = {"base": identity(base), "world": asdict(own), "settings": asdict(settings)}
    modules = (
        "training.sft",
        "tasks.microworld",
        "tasks.decision_world",
        "tasks.decision_questions",
    )
    return make("decision-pretrain", spec, build, modules=modules, root=root)


def supervised(
    base: str | Path,
    questions: Sequence[DecisionQuestion],
    settings: SFTSettings,
    *,
    accelerate: str = "",
    root: str | Path = ROOT,
) -> Path:
    """A model fine-tuned on right decisions, without reasoning.

    Source: paper B, equation (1).

    Args:
        base: Folder or hub name of the model to start from.
        questions: To train on.
        settings: Of the training.
        accelerate: File of an accelerate configuration; empty: train in this process.
        root: Folder of the store.

    Returns:
        Folder with ``model/`` and ``dynamics.csv``.
    """

    def build(folder: Path) -> None:
        from corea.decisions.trainer import supervised_rows
        from corea.engines.models import load_tokenizer
        from corea.training.launch import Job

        tokenizer = load_tokenizer(base)
        rows = supervised_rows(tokenizer, questions)
        _train(Job("sft", str(base), settings, rows), folder, accelerate)

    spec = {
        "base": identity(base),
        "questions": digest(questions),
        "settings": asdict(settings),
        **_processes(accelerate),
    }
    return make(
        "decision-sft",
        spec,
        build,
        modules=("decisions.trainer", "training.sft", "training.launch"),
        root=root,
    )


def decisions_reinforced(
    base: str | Path,
    questions: Sequence[DecisionQuestion],
    validation: Sequence[DecisionQuestion],
    settings: DecisionSettings,
    *,
    accelerate: str = "",
    root: str | Path = ROOT,
) -> Path:
    """A model trained by GRPO on decisions, with or without the calibration-aware loss.

    Args:
        base: Folder or hub name of the model to start from.
        questions: To train on.
        validation: Held out, for checkpoint selection.
        settings: Of the training.
        accelerate: File of an accelerate configuration; empty: train in this process.
        root: Folder of the store.

    Returns:
        Folder with ``model/``, ``dynamics.csv``, ``validation.csv``, ``selection.csv`` and
        ``alarms.csv``.
    """
    return _on_rollouts(
        "decision-grpo",
        "decisions",
        (
            "decisions.trainer",
            "tasks.decision_questions",
            "training.launch",
        ),
        base,
        questions,
        validation,
        settings,
        accelerate,
        root,
    )


def _on_rollouts(
    kind: str,
    task: str,
    modules: tuple[str, ...],
    base: str | Path,
    questions: Sequence[Question] | Sequence[DecisionQuestion],
    validation: Sequence[Question] | Sequence[DecisionQuestion],
    settings: GRPOSettings | DecisionSettings,
    accelerate: str,
    root: str | Path,
) -> Path:
    """A model reinforced on questions, selected on held-out ones."""

    def build(folder: Path) -> None:
        from corea.training.launch import Job

        _train(Job(task, str(base), settings, questions, validation), folder, accelerate)

    spec = {
        "base": identity(base),
        "questions": digest(questions),
        "validation": digest(validation),
        "settings": asdict(settings),
        **_processes(accelerate),
    }
    return make(kind, spec, build, modules=modules, root=root)


def _train(job: Job, folder: Path, accelerate: str) -> None:
    from corea.training.launch import start

    if accelerate:
        start(job, folder, accelerate)
    else:
        job.train(folder)


def _processes(accelerate: str) -> dict[str, Any]:
    """What a specification says of the processes that train."""
    if not accelerate:
        return {}
    from corea.training.launch import configuration

    return {"accelerate": configuration(accelerate)}


def decided(
    model: str | Path,
    questions: Sequence[DecisionQuestion],
    sampling: Sampling,
    *,
    reasoning: bool,
    batch_size: int,
    decisions: str = "greedy",
    engine: str = "transformers",
    root: str | Path = ROOT,
) -> Path:
    """The decisions of a model, with the probabilities of the options.

    Args:
        model: Folder or hub name.
        questions: To decide.
        sampling: How reasoning is drawn.
        reasoning: Whether to reason first.
        batch_size: Rows at once.
        decisions: ``"greedy"`` or ``"sampled"``, after the reasoning.
        engine: What decides, ``"transformers"`` or ``"vllm"``.
        root: Folder of the store.

    Returns:
        The folder :func:`corea.decisions.evaluation.evaluate_decisions` wrote.
    """

    def build(folder: Path) -> None:
        from corea.decisions.evaluation import evaluate_decisions
        from corea.engines.opening import opened_here

        with opened_here(engine, model, batch_size=batch_size) as deciding:
            evaluate_decisions(
                deciding,
                questions,
                system="model",
                sampling=sampling,
                reasoning=reasoning,
                directory=folder,
                decisions=decisions,
            )

    spec = {
        "model": identity(model),
        "questions": digest(questions),
        "sampling": asdict(sampling),
        "reasoning": reasoning,
        "batch_size": batch_size,
        "decisions": decisions,
        "engine": engine,
    }
    modules = (
        "decisions.evaluation",
        "engines.evaluation",
        "tasks.decision_questions",
        *_ENGINE_MODULES.get(engine, ()),
    )
    return make("decisions", spec, build, modules=modules, root=root)


def swapped(
    model: str | Path,
    questions: Sequence[DecisionQuestion],
    decisions: Path,
    shares: Sequence[float],
    *,
    max_completion_tokens: int,
    batch_size: int,
    seed: int,
    engine: str = "transformers",
    root: str | Path = ROOT,
) -> Path:
    """What a model decides behind the reasoning of other questions.

    Args:
        model: Folder or hub name.
        questions: The questions.
        decisions: The model's own decisions on them, from :func:`decided`.
        shares: Of the foreign reasoning.
        max_completion_tokens: Length at which a model that goes on is cut.
        batch_size: Rows at once.
        seed: Of the donors.
        engine: What decides, ``"transformers"`` or ``"vllm"``.
        root: Folder of the store.

    Returns:
        Folder with ``swapped.parquet``, as :func:`corea.decisions.evaluation.swap_reasoning`
        returns it.
    """

    def build(folder: Path) -> None:
        from corea.decisions.evaluation import swap_reasoning
        from corea.engines.evaluation import read_samples
        from corea.engines.opening import opened_here

        with opened_here(engine, model, batch_size=batch_size) as deciding:
            table = swap_reasoning(
                deciding,
                questions,
                read_samples(decisions),
                shares=shares,
                max_completion_tokens=max_completion_tokens,
                seed=seed,
            )
        table.to_parquet(folder / "swapped.parquet", index=False)

    spec = {
        "model": identity(model),
        "questions": digest(questions),
        "decisions": decisions.name,
        "shares": list(shares),
        "max_completion_tokens": max_completion_tokens,
        "batch_size": batch_size,
        "seed": seed,
        "engine": engine,
    }
    modules = (
        "decisions.evaluation",
        "engines.evaluation",
        "tasks.decision_questions",
        *_ENGINE_MODULES.get(engine, ()),
    )
    return make("swap", spec, build, modules=modules, root=root)


def router(
    base: str | Path,
    questions: Sequence[Question],
    answers: Path,
    settings: SFTSettings,
    *,
    accelerate: str = "",
    root: str | Path = ROOT,
) -> Path:
    """A router trained to say how often a model answers a question right.

    Args:
        base: Folder or hub name of the model to start from.
        questions: Training questions.
        answers: The model's answers to them, from :func:`evaluated`.
        settings: Of the training.
        accelerate: File of an accelerate configuration; empty: train in this process.
        root: Folder of the store.

    Returns:
        Folder with ``model/`` and ``dynamics.csv``.
    """

    def build(folder: Path) -> None:
        from corea.engines.evaluation import read_samples
        from corea.engines.models import load_tokenizer
        from corea.rlcc.learned_confidence import prompted_rows
        from corea.training.launch import Job

        tokenizer = load_tokenizer(base)
        rows = prompted_rows(tokenizer, questions, read_samples(answers))
        _train(Job("sft", str(base), settings, rows), folder, accelerate)

    spec = {
        "base": identity(base),
        "questions": digest(questions),
        "answers": answers.name,
        "settings": asdict(settings),
        **_processes(accelerate),
    }
    modules = ("rlcc.learned_confidence", "training.sft", "training.launch")
    return make("router", spec, build, modules=modules, root=root)


def corpus_world(world: World, preset: Preset) -> World:
    """The world as the corpus of one size of model states it.

    Args:
        world: The world.
        preset: The size; where it has shares of its own, more or fewer names are noisy.

    Returns:
        The world with the noise of that corpus.
    """
    shares = world.name_shares if preset.name_shares is None else preset.name_shares
    return replace(world, name_shares=shares)


def count_weights(model: str | Path) -> int:
    """How many weights a model's files hold.

    Args:
        model: Folder or hub name.

    Returns:
        The number; weights that are shared count once.

    Raises:
        ModelError: If there is no such model, or the folder holds no safetensors.
    """
    from safetensors import safe_open

    from corea.engines.models import model_folder

    total = 0
    for path in sorted(model_folder(model).glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  not a mapping
                total += math.prod(weights.get_slice(name).get_shape())
    return total


def identity(model: str | Path, engine: str = "transformers") -> str:
    """What a model is, whatever its folder is called: a digest of its files.

    Args:
        model: Folder or hub name; for a server the name under which it has the model.
        engine: What answers, one of :data:`corea.engines.opening.ENGINES`.

    Returns:
        The digest; of a hub's model its name and commit; of a server's, unless its files are in a
        folder here, its name.

    Raises:
        ModelError: If there is no such model.
    """
    from corea.engines.models import model_folder

    if engine == "server" and not Path(model).is_dir():
        return str(model)
    folder = model_folder(model)
    if not Path(model).is_dir():
        return f"{str(model).partition('@')[0]}@{folder.name}"
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def digest(questions: Sequence[Question] | Sequence[DecisionQuestion]) -> str:
    """A digest of questions in their order.

    Args:
        questions: Any.

    Returns:
        SHA-256, in hexadecimal.
    """
    text = json.dumps([asdict(question) for question in questions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
