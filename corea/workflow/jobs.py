"""What the runs of a profile do with models: which, and with how many tokens.

A run's parameters are followed through the runs that it reads to the model it starts from. What is
assumed:

1. Prompts and completions of the microworld have the lengths that were measured. A completion of a
   real model is half as long as it may be, and its prompt has a token for four characters.
2. What a run shares with an earlier one is made by the earlier one (:mod:`corea.store`), where the
   parameters are the same by intent: the test answers of ``confidence_models`` and
   ``signals_together``.
3. Several processes share a training evenly, which changes its hours on the clock; its GPU-hours
   only in so far as each makes its rollouts in a batch of its own. Hours in which a GPU waits for
   another are not counted, nor are those of a server that is asked.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from corea.book.display import visible
from corea.confidence import CONFIDENCE_GRID
from corea.engines.opening import ENGINES
from corea.tasks import microworld
from corea.tasks.papers import DATASETS
from corea.tasks.suites import MICROWORLD, SUITES, Suite
from corea.workflow import compute
from corea.workflow.compute import Device, Draw, Shape, Training
from corea.workflow.pipeline import TABLES, PipelineError, Profile, Run

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?")


# --- texts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """How long the texts of a dataset are, in tokens.

    Attributes:
        prompt: Of a prompt, on average.
        completion: Of a completion, on average; None: half of what it may have.
        tests: Questions of the test part; None: as many as are asked for.
    """

    prompt: float
    completion: float | None = None
    tests: int | None = None

    def written(self, longest: int) -> float:
        """Tokens of a completion.

        Args:
            longest: How many it may have.

        Returns:
            How many it has on average.

        Example:
            >>> Text(10, 30).written(64), Text(10, 30).written(20), Text(10).written(64)
            (30, 20, 32.0)
        """
        return longest / 2 if self.completion is None else min(self.completion, longest)


TEXTS: Mapping[str, Text] = MappingProxyType(
    {
        "chains": Text(8.4, 33.5),
        "long_chains": Text(14.0, 55.9),
        "words": Text(15.4, 34.4),
        "facts": Text(11.2, 16.2),
        "choices": Text(8.8, 15.7),
        "fact_choices": Text(14.4, 15.5),
        "messages": Text(6.4, 11.4),
        "lists": Text(21.0, 14.0),
        # prompts: characters / 4 with the instruction, and 30 tokens of a chat template
        "deepmath": Text(120, tests=500),  # its texts are not here: as math500
        "math500": Text(118, tests=500),
        "gsm8k": Text(129, tests=1319),
        "olympiadbench": Text(148, tests=675),
        "gpqa": Text(250, tests=448),  # not here: a guess
        "commonsenseqa": Text(145, tests=1221),
        "openbookqa": Text(160, tests=500),
        "openai_moderation": Text(283, tests=1170),
        "xstest": Text(131, tests=450),
    }
)
"""The microworld's lengths are those of the profile laptop's answers; the papers' datasets have
the counts of :mod:`corea.tasks.papers`."""

_CORPUS, _DECISION_CORPUS = 10.5 + 33.2, 10.3 + 10.3  # tokens of a row
_VOCABULARY = 300 + 2 + microworld.World().names  # of the microworld's tokenizer
_DECISION_TOKENS = 15  # that decisions add to it
_DIRECT_PROMPT, _DIRECT_COMPLETION = 4, 2  # tokens without reasoning: more, and in all
_CANDIDATE = 4  # tokens of a text of the grid of confidences
_ROUTED = 6  # tokens that a router writes


# --- models -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A model that a run starts from.

    Attributes:
        name: Name on the hub, a folder, or a size of the microworld.
        kind: ``"microworld"``, ``"hub"``, ``"folder"`` or ``"server"``.
        shape: Its shape; None if nobody knows.
        weights: How many; None if nobody knows.
        suite: What it is asked.
        precision: Of its weights, where it only generates.
    """

    name: str
    kind: str
    shape: Shape | None
    weights: int | None
    suite: Suite
    precision: str


def find_model(profile: Profile, run: str) -> Model:
    """The model that a run starts from, through the runs that it reads.

    Args:
        profile: The profile.
        run: Name of a run that makes, trains or asks one model.

    Returns:
        The model.

    Raises:
        PipelineError: If the run names no model, or one that cannot be.
    """
    parameters, notebook = profile.runs[run].parameters, profile.runs[run].notebook.stem
    if notebook == "pretrain":
        return _microworld_model(run, parameters)
    named = (parameters.get(key) for key in ("model", "base"))
    value = next((name for name in named if isinstance(name, str) and name), "")
    if not value:
        raise PipelineError(f"{run}: its parameters name neither a model nor a base to estimate")
    folder = TABLES.fullmatch(value)
    if not folder:
        return _outside_model(run, value, parameters)
    found = find_model(profile, folder["run"])
    if notebook in ("train", "decision_train", "decision_pretrain"):
        found = replace(found, precision=parameters["precision"])
    if notebook == "decision_pretrain" and found.shape:
        shape = replace(found.shape, vocab_size=found.shape.vocab_size + _DECISION_TOKENS)
        found = replace(found, shape=shape, weights=shape.weights)
    return found


def _microworld_model(run: str, parameters: Mapping[str, Any]) -> Model:
    role, architecture = parameters["role"], parameters["architecture"]
    if role not in microworld.PRESETS:
        known = ", ".join(microworld.PRESETS)
        raise PipelineError(f"{run}: role is {role!r}; expected one of {known}")
    if architecture not in microworld.ARCHITECTURES:
        known = ", ".join(microworld.ARCHITECTURES)
        raise PipelineError(f"{run}: architecture is {architecture!r}; expected one of {known}")
    preset = microworld.PRESETS[role]
    shape = Shape(
        hidden_size=preset.hidden_size,
        n_layers=preset.n_layers,
        n_heads=preset.n_heads,
        n_kv_heads=preset.n_heads,
        intermediate_size=4 * preset.hidden_size,
        vocab_size=_VOCABULARY,
        head_dim=preset.hidden_size // preset.n_heads,
        biased=architecture == "qwen2",
        normed=architecture == "qwen3",
    )
    name = f"microworld, {role}"
    if architecture != "qwen2":
        name += f" ({architecture})"
    precision = parameters["precision"]
    return Model(name, "microworld", shape, shape.weights, MICROWORLD, precision)


def _outside_model(run: str, value: str, parameters: Mapping[str, Any]) -> Model:
    suite = parameters.get("suite", "papers")
    if suite not in SUITES:
        raise PipelineError(f"{run}: suite is {suite!r}; expected one of {', '.join(SUITES)}")
    if parameters.get("engine") == "server":  # which has a name of its own for it
        told = round(parameters.get("billions", 0) * 1e9) or None
        return Model(value, "server", None, told, SUITES[suite], "bfloat16")
    folder = Path(value)
    if folder.is_dir():
        from corea.engines.models import ModelError
        from corea.stages import count_weights

        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            shape, weights = compute.shape_of(config), count_weights(folder)
        except (OSError, ValueError, KeyError, ModelError) as error:
            reason = f"{type(error).__name__}: {visible(error)}"
            raise PipelineError(f"{run}: {value}: not a model's folder ({reason})") from error
        precision = config.get("dtype") or config.get("torch_dtype")
        precision = "float32" if precision == "float32" else "bfloat16"
        return Model(value, "folder", shape, weights, SUITES[suite], precision)
    named = _HUB_NAME.fullmatch(value)
    if not named:
        raise PipelineError(f"{run}: {value!r} is neither a folder nor a name on the hub")
    shape = compute.HUB.get(named["name"]) or _cached_shape(value)
    known = shape.weights if shape else None
    return Model(value, "hub", shape, known, SUITES[suite], "bfloat16")


def cached_config(model: str) -> Path | None:
    """The ``config.json`` of a hub model that was downloaded before.

    Args:
        model: Name on the hub, with ``@`` and a commit where it is to be that one.

    Returns:
        The file in the hub's cache, or None.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = model.partition("@")
    found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def _cached_shape(model: str) -> Shape | None:
    path = cached_config(model)
    return compute.shape_of(json.loads(path.read_text("utf-8"))) if path else None


# --- jobs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One thing that a run does with a model.

    Attributes:
        what: What it does.
        model: With which model.
        prompt_tokens: Tokens of prompts that are read for completions.
        sampled_tokens: Tokens that are drawn.
        trained_tokens: Tokens in forward and backward passes, those of prompts too.
        seconds: Of one device; NaN if the model's shape is not known.
        gib: Memory that each device needs; likewise.
        devices: Devices at once.
        datasets: What is asked.
    """

    what: str
    model: Model
    prompt_tokens: float = 0.0
    sampled_tokens: float = 0.0
    trained_tokens: float = 0.0
    seconds: float = math.nan
    gib: float = math.nan
    devices: int = 1
    datasets: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Asked:
    """Questions of a dataset that a model answers.

    Attributes:
        dataset: Their dataset.
        rows: Completions in all.
        reasoning: Whether it reasons; otherwise one token decides.
        read_again: Tokens of each that are read once more, for its signals.
    """

    dataset: str
    rows: float
    reasoning: bool = True
    read_again: float = 0.0


@dataclass(frozen=True)
class Planner:
    """Estimates jobs of a profile on a device.

    Attributes:
        profile: The profile.
        device: The device.
    """

    profile: Profile
    device: Device

    def answers(
        self,
        run: Run,
        model: Model,
        datasets: Sequence[str],
        *,
        n: int | None = None,
        samples: int | None = None,
        part: str = "test",
        what: str = "evaluation",
    ) -> Job:
        """Answers in words, each with its expected confidence (:mod:`corea.confidence`)."""
        p = run.parameters
        longest = p["max_completion_tokens"]
        asked = [
            _Asked(
                name,
                _questions(name, part, p["n_questions"] if n is None else n)
                * (p["n_samples"] if samples is None else samples),
                read_again=TEXTS[name].prompt
                + TEXTS[name].written(longest)
                + _CANDIDATE * len(CONFIDENCE_GRID),
            )
            for name in datasets
        ]
        return self.generation(run, model, asked, what, engine=p.get("engine", "transformers"))

    def decisions(
        self,
        run: Run,
        model: Model,
        datasets: Sequence[str],
        *,
        reasoning: bool = True,
        part: str = "test",
        what: str = "evaluation",
        openings: int = 1,
    ) -> Job:
        """Decisions, each with its probability from one pass over all before it."""
        p = run.parameters
        asked = [
            _Asked(
                name,
                _questions(name, part, p["n_questions"]) * p["n_samples"],
                reasoning,
                TEXTS[name].prompt + TEXTS[name].written(p["max_completion_tokens"]),
            )
            for name in datasets
        ]
        engine = p.get("engine", "transformers")
        return self.generation(run, model, asked, what, engine=engine, openings=openings)

    def generation(
        self,
        run: Run,
        model: Model,
        asked: Sequence[_Asked],
        what: str,
        *,
        engine: str = "transformers",
        openings: int = 1,
    ) -> Job:
        """What drawing completions takes, and reading them again, by a model opened so often."""
        p = run.parameters
        longest = p["max_completion_tokens"]
        datasets = tuple(dict.fromkeys(part.dataset for part in asked))
        draws = []
        for part in asked:
            text = TEXTS[part.dataset]
            prompt, completion = text.prompt, text.written(longest)
            if not part.reasoning:
                prompt, completion = prompt + _DIRECT_PROMPT, min(_DIRECT_COMPLETION, longest)
            cut = longest if part.reasoning else _DIRECT_COMPLETION
            draws.append(Draw(part.rows, prompt, completion, cut, p["batch_size"]))
        job = Job(
            what,
            model,
            prompt_tokens=sum(draw.rows * draw.prompt for draw in draws),
            sampled_tokens=sum(draw.rows * draw.completion for draw in draws),
            datasets=datasets,
        )
        if engine == "server":
            return replace(job, what=f"{what} by a server", seconds=0.0, gib=0.0, devices=0)
        if engine not in ENGINES:
            raise PipelineError(
                f"{run.name}: engine is {engine!r}; expected one of {', '.join(ENGINES)}"
            )
        if model.shape is None:
            return job
        # vLLM has prompt and completion in its cache still
        again = 0.0 if engine == "vllm" else sum(part.rows * part.read_again for part in asked)
        common = (self.device, model.precision)
        seconds = compute.reading_seconds(model.shape, again, *common)
        seconds += openings * compute.STARTUP.get(engine, 0.0)
        for draw in draws:
            seconds += compute.generation_seconds(model.shape, draw, *common, engine)
        gib = max(compute.generation_gib(model.shape, draw, *common, engine) for draw in draws)
        return replace(job, seconds=seconds, gib=gib)

    def reading(self, run: Run, model: Model, tokens: float, what: str) -> Job:
        """What reading tokens takes that are there already."""
        if model.shape is None:
            return Job(what, model)
        draw = Draw(run.parameters["batch_size"], 0.0, 1.0, 1, run.parameters["batch_size"])
        common = (self.device, model.precision)
        return Job(
            what,
            model,
            seconds=compute.reading_seconds(model.shape, tokens, *common),
            gib=compute.generation_gib(model.shape, draw, *common),
        )

    def supervised(
        self, model: Model, settings: Mapping[str, Any], length: float, what: str
    ) -> Job:
        """What supervised training on rows of this many tokens takes."""
        tokens = settings["steps"] * settings["batch"] * length
        job = Job(what, model, trained_tokens=tokens)
        if model.shape is None:
            return job
        how = _training(settings)
        return replace(
            job,
            seconds=compute.training_seconds(model.shape, tokens, self.device, how),
            gib=compute.training_gib(
                model.shape,
                self.device,
                how,
                rows=settings.get("micro_batch", settings["batch"]),
                length=length,
            ),
            devices=how.processes,
        )

    def reinforced(self, run: Run, model: Model, dataset: str, what: str) -> Job:
        """What GRPO takes: rollouts, their forward and backward passes, and validation."""
        settings = trainer_settings(run)
        text, longest = TEXTS[dataset], settings["max_completion_tokens"]
        completion = text.written(longest)
        length = text.prompt + completion
        rows = settings["steps"] * settings["batch"]
        validations = settings["steps"] // settings["checkpoint_every"] + 1
        validated = validations * settings["n_validation"] * settings["group_size"]
        job = Job(
            what,
            model,
            prompt_tokens=(rows + validated) * text.prompt,
            sampled_tokens=(rows + validated) * completion,
            trained_tokens=rows * length,
            datasets=(dataset,),
        )
        if model.shape is None:
            return job
        how, rollouts = _training(settings), settings.get("rollouts", "corea")
        in_vllm = rollouts.startswith("vllm")
        per_rollout = settings["batch"] * settings.get("steps_per_rollout", 1)
        if rollouts != "vllm_server":  # each process makes its own
            per_rollout //= how.processes

        # log-probabilities before the step, where several steps share a rollout or vLLM made it;
        # those of the base model, for a divergence; and those of what is validated
        before = settings.get("steps_per_rollout", 1) > 1 or in_vllm
        reference = settings["kl_coef"] > 0
        read = rows * (before + reference) + validated * (1 + reference)
        trained = rows * length
        if every := settings.get("cosine_every", 0):
            # two more backward passes: 8 operations a weight and token beside the 6
            trained += settings["steps"] // every * settings["batch"] * length * 8 / 6
        draw = Draw(rows + validated, text.prompt, completion, longest, per_rollout)
        seconds = compute.training_seconds(model.shape, trained, self.device, how)
        seconds += compute.reading_seconds(model.shape, read * length, self.device, how.precision)
        seconds += compute.generation_seconds(
            model.shape,
            draw,
            self.device,
            "bfloat16" if in_vllm else how.stored,
            "vllm" if in_vllm else "transformers",
        )
        gib = compute.training_gib(
            model.shape,
            self.device,
            how,
            rows=settings.get("micro_batch", settings["batch"]),
            length=text.prompt + longest,
            reference=reference,
            cached_tokens=0.0 if in_vllm else per_rollout * (text.prompt + longest),
        )
        if rollouts == "vllm_colocate":
            gib += settings.get("vllm_memory_share", 0.3) * self.device.memory
        devices = how.processes + (rollouts == "vllm_server")
        return replace(job, seconds=seconds, gib=gib, devices=devices)


def trainer_settings(run: Run) -> dict[str, Any]:
    """What a run's parameters set of a training.

    Args:
        run: The run.

    Returns:
        Its parameters with what is in ``more``, further fields of the trainer's settings.
    """
    return {**run.parameters, **run.parameters.get("more", {})}


def _training(settings: Mapping[str, Any]) -> Training:
    processes, sharded = read_accelerate(settings.get("accelerate", ""))
    return Training(
        precision=settings.get("precision", "float32"),
        lora_rank=settings.get("lora_rank", 0),
        lora_targets=settings.get("lora_targets", "default"),
        checkpointing=settings.get("gradient_checkpointing", False),
        processes=processes,
        sharded=sharded,
    )


def _questions(dataset: str, part: str, n: int) -> int:
    """How many questions are asked, where at most ``n`` are, or all for 0."""
    there = TEXTS[dataset].tests
    if part != "test" and dataset in DATASETS:
        stretch = DATASETS[dataset].parts[part].stretch
        there = stretch[1] - stretch[0] if stretch else None
    return n if there is None else min(n or there, there)


def read_accelerate(path: str) -> tuple[int, str]:
    """What a configuration of accelerate says: how many processes, and what they share out.

    Args:
        path: The file, or nothing for the notebook's own process.

    Returns:
        The number of processes, and ``"none"``, ``"states"`` or ``"all"`` as for
        :class:`corea.workflow.compute.Training`.

    Raises:
        PipelineError: If the file cannot be read or has no number of processes; names it.
    """
    if not path:
        return 1, "none"
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
        processes = content["num_processes"]
        kind = str(content.get("distributed_type", ""))
        deepspeed = content.get("deepspeed_config") or {}
        if file := deepspeed.get("deepspeed_config_file"):
            deepspeed = json.loads(Path(file).read_text("utf-8"))["zero_optimization"]
        stage = deepspeed.get("zero_stage", deepspeed.get("stage", 0))
        fsdp = content.get("fsdp_config") or {}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {visible(error)}"
        raise PipelineError(f"{path}: not a configuration of accelerate ({reason})") from error
    if type(processes) is not int or processes < 1:
        raise PipelineError(f"{path}: num_processes is {processes!r}; expected a number from 1")
    if kind == "DEEPSPEED":
        return processes, "all" if stage == 3 else "states" if stage in (1, 2) else "none"
    if kind == "FSDP":
        whole = fsdp.get("fsdp_sharding_strategy") == "SHARD_GRAD_OP"  # version 1 of FSDP
        whole |= fsdp.get("fsdp_reshard_after_forward") is False  # version 2
        return processes, "states" if whole else "all"
    return processes, "none"


# --- what each notebook does ------------------------------------------------------------------


def _pretrain(run: Run, planner: Planner) -> Iterator[Job]:
    model = find_model(planner.profile, run.name)
    settings = {**run.parameters, "micro_batch": math.gcd(run.parameters["batch"], 8)}
    yield planner.supervised(model, settings, _CORPUS, "pretraining")
    yield planner.answers(run, model, model.suite.datasets)


def _base_model(run: Run, planner: Planner) -> Iterator[Job]:
    model = find_model(planner.profile, run.name)
    yield planner.answers(run, model, model.suite.datasets)


def _train(run: Run, planner: Planner) -> Iterator[Job]:
    model = find_model(planner.profile, run.name)
    reward = run.parameters["confidence_reward"]
    what = "GRPO (RLVR)" if reward == "none" else f"GRPO ({reward})"
    yield planner.reinforced(run, model, model.suite.domain, what)
    yield planner.answers(run, model, model.suite.datasets)


def _decision_pretrain(run: Run, planner: Planner) -> Iterator[Job]:
    model = find_model(planner.profile, run.name)
    settings = {**run.parameters, "micro_batch": math.gcd(run.parameters["batch"], 8)}
    yield planner.supervised(model, settings, _DECISION_CORPUS, "pretraining of decisions")
    yield from _decision_base(run, planner)


def _decision_base(run: Run, planner: Planner) -> Iterator[Job]:
    model = find_model(planner.profile, run.name)
    for reasoning in (True, False):
        yield planner.decisions(run, model, model.suite.decision_datasets, reasoning=reasoning)


def _decision_train(run: Run, planner: Planner) -> Iterator[Job]:
    model = find_model(planner.profile, run.name)
    task = run.parameters["task"]
    if task not in model.suite.tasks:
        known = ", ".join(model.suite.tasks)
        raise PipelineError(f"{run.name}: task is {task!r}; expected one of {known}")
    datasets = model.suite.tasks[task]
    reasoning = run.parameters["method"] != "sft"
    if reasoning:
        method = "GRPO, calibration-aware" if run.parameters["calibration_weight"] else "GRPO"
        yield planner.reinforced(run, model, datasets[0], f"{method} (decisions)")
    else:
        length = TEXTS[datasets[0]].prompt + _DIRECT_PROMPT + _DIRECT_COMPLETION
        job = planner.supervised(model, trainer_settings(run), length, "SFT (decisions)")
        yield replace(job, datasets=(datasets[0],))
    yield planner.decisions(run, model, datasets, reasoning=reasoning)


def _confidence_models(run: Run, planner: Planner) -> Iterator[Job]:
    p = run.parameters
    judged = find_model(planner.profile, run.name)
    domain, n = judged.suite.domain, p["n_train"]
    yield planner.answers(
        run, judged, [domain], n=n, samples=p["n_answers"], part="train", what="answers to judge"
    )
    start = TABLES.fullmatch(p["base"])
    router = find_model(planner.profile, start["run"]) if start else judged
    settings = {"steps": p["router_steps"], "batch": p["router_batch"]}
    settings |= {"precision": p.get("precision", "float32"), **p.get("more", {})}
    length = TEXTS[domain].prompt + _ROUTED
    yield planner.supervised(router, settings, length, "router (SFT)")
    asked = []
    for name in judged.suite.datasets:
        again = TEXTS[name].prompt + (p["n_answers"] + 1) * _ROUTED
        rows = _questions(name, "test", p["n_questions"])
        asked.append(_Asked(name, rows, reasoning=False, read_again=again))
    yield planner.generation(run, router, asked, "routing")


def _signals_together(run: Run, planner: Planner) -> Iterator[Job]:
    p = run.parameters
    for name in _read(p["judged_runs"] + p["stated_runs"]):
        model = find_model(planner.profile, name)
        tokens = sum(
            _questions(dataset, "test", p["n_questions"])
            * p["n_samples"]
            * (TEXTS[dataset].prompt + TEXTS[dataset].written(p["max_completion_tokens"]))
            for dataset in model.suite.datasets
        )
        yield planner.reading(run, model, tokens, "reading answers again")


def _calibrated_rollouts(run: Run, planner: Planner) -> Iterator[Job]:
    for name in _read(run.parameters["runs"]):
        model, datasets = _decided(planner.profile, name)
        openings = len(datasets)
        yield planner.decisions(
            run, model, datasets, part="train", what="decisions", openings=openings
        )


def _reasoning_swap(run: Run, planner: Planner) -> Iterator[Job]:
    p = run.parameters
    drawn = 1 + sum(1 - share for share in p["shares"])  # its own, and what it goes on with
    for name in _read(p["runs"]):
        model, datasets = _decided(planner.profile, name)
        asked = []
        for dataset in datasets:
            text, n = TEXTS[dataset], _questions(dataset, "test", p["n_questions"])
            again = (1 + len(p["shares"])) / drawn * (text.prompt + text.written(64))
            asked.append(_Asked(dataset, n * drawn, read_again=again))
        what = "decisions behind foreign reasoning"
        openings = 2 * len(datasets)
        yield planner.generation(run, model, asked, what, engine=p["engine"], openings=openings)


def _decided(profile: Profile, name: str) -> tuple[Model, list[str]]:
    """A run's model, and the datasets of training of the tasks it was asked."""
    model = find_model(profile, name)
    task = profile.runs[name].parameters.get("task")
    tasks = [task] if task else [*model.suite.tasks]
    return model, [model.suite.tasks[task][0] for task in tasks]


def _read(folders: Sequence[str]) -> list[str]:
    """Names of the runs whose folders these are."""
    found = [TABLES.fullmatch(folder) for folder in folders]
    return [folder["run"] for folder in found if folder]


JOBS: Mapping[str, Callable[[Run, Planner], Iterator[Job]]] = {
    "pretrain": _pretrain,
    "base_model": _base_model,
    "train": _train,
    "confidence_models": _confidence_models,
    "decision_pretrain": _decision_pretrain,
    "decision_base": _decision_base,
    "decision_train": _decision_train,
    "signals_together": _signals_together,
    "calibrated_rollouts": _calibrated_rollouts,
    "reasoning_swap": _reasoning_swap,
}
"""What the notebooks do that load a model."""

READERS = frozenset(
    {
        *("calibration", "cascade", "published_tables", "conformance", "your_records"),
        *("what_rewards_ask", "training_speed", "self_awareness", "corea_baselines"),
        *("threshold_curves", "second_pairing", "sample_outputs", "reward_ablation"),
        *("rollout_size", "backbones", "self_knowledge", "sft_or_grpo", "post_hoc"),
        *("decision_loss", "model_size", "real_models", "interval_coverage"),
    }
)
"""Notebooks that load no model."""

STARTS = ("pretrain", "base_model", "decision_base")
"""Notebooks whose model is no other run's."""

KNOWN = READERS | JOBS.keys()
"""Notebooks that can be estimated."""


def run_jobs(profile: Profile, run: str, device: Device) -> list[Job]:
    """What a run does with models, and what that takes.

    Args:
        profile: The profile.
        run: Name of a run whose notebook is in :data:`JOBS`.
        device: Where it runs.

    Returns:
        The jobs, one or more.

    Raises:
        PipelineError: If a parameter cannot be; names the run or the file.
    """
    this = profile.runs[run]
    try:
        return list(JOBS[this.notebook.stem](this, Planner(profile, device)))
    except KeyError as error:
        raise PipelineError(
            f"{run}: {this.notebook} has no parameter {error}, from which it would be estimated"
        ) from error
