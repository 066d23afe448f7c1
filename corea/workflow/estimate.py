"""What a run does with models, and the tokens, seconds and memory that takes.

To estimate a run, what its notebook declares (:mod:`corea.workflow.work`) is read, and ``base`` is
followed back to the first model.

For a model of L layers and width d in which a token is multiplied with N weights:

1. A token takes 2N operations to read and 6N to train (Kaplan et al. 2020, arXiv 2001.08361,
   section 2.1), 8N with gradient checkpointing (Korthikanti et al. 2022, arXiv 2205.05198, section
   5); with a LoRA adapter of A weights 4N + 6A, and 6N + 8A. Attention to earlier tokens is left
   out.
2. A GPU reaches 0.3 of its peak rate and 0.6 of its bandwidth: our assumption.
3. A step of generation reads all weights and the cache of each row (Pope et al. 2022, arXiv
   2211.05102, section 2). A batch of transformers' engine goes on until its longest row has ended;
   vLLM fills up with as many rows as fit into its memory.
4. A CPU core also spends time by L d for each token, and by L for each pass. These constants are
   fitted to what the profile ``laptop`` took (:func:`corea.workflow.plan.measured`). In bfloat16
   it is 3.3 times as fast, as SmolLM2-135M was on a core with AVX512-BF16.
5. Training holds weights, gradients and two moments of AdamW, 4 bytes each; 2 more for autocast's
   copy in bfloat16; frozen weights under LoRA only themselves. A layer keeps 8d + 4f + 4h + 6k
   activations a token (f: feed-forward width; h, k: widths of all queries and keys), counted by us
   in transformers; with checkpointing d, and all of them for one layer.
6. Generation holds weights, 2Lk cached values for each token of a row, and logits; transformers'
   engine beside weights in bfloat16 those of the output layer in float32 too.
7. A completion of a real model is half as long as it may be. Several processes share a training
   evenly. A GPU's waiting, and a server's work, are not counted.

Long runs of the model world on a CPU are estimated within 25 %, those of real models within a
factor of 2; hours of a GPU, which nothing was compared with, within about 3. Memory is within 2:
rows that are longer than the mean, and what the allocator keeps, are not in it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from corea.book.display import visible
from corea.confidence import CONFIDENCE_GRID
from corea.engines.gguf_files import is_gguf, read_header
from corea.engines.loading import REVISIONS
from corea.engines.model_errors import ModelError
from corea.engines.opening import ENGINES
from corea.tasks import microworld
from corea.tasks.papers import DATASETS
from corea.tasks.suites import MICROWORLD, SUITES, Suite
from corea.workflow import PipelineError
from corea.workflow.profiles import TABLES, Profile, Run
from corea.workflow.work import accelerated, item_settings, items

GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2}  # of a value


@dataclass(frozen=True)
class Device:
    """What computes, with the rates that it reaches."""

    name: str
    unit: str  # of its time
    flops: Mapping[str, float]  # operations a second, by precision
    bandwidth: float  # bytes a second from memory
    memory: float  # GiB
    base: float  # GiB taken before a model is loaded
    around: float  # seconds of a notebook besides its models
    launch: Mapping[str, float]  # seconds a layer and step of generation, by engine
    startup: float = 0.0  # seconds until vLLM answers
    # seconds a token, layer and width in float32: trained, drawn
    moved: tuple[float, float] = (0.0, 0.0)
    launch_pass: float = 0.0  # seconds a layer and pass of training
    fast: str = "bfloat16"  # the precision that "auto" is

    def precision(self, name: str) -> str:
        """A precision by its name."""
        return self.fast if name == "auto" else name

    def moving(self, what: int, precision: str) -> float:
        """:attr:`moved` in a precision, which is faster there as its operations are."""
        return self.moved[what] * self.flops["float32"] / self.flops[precision]


def _gpu(name: str, bfloat16: float, float32: float, bandwidth: float, memory: float) -> Device:
    """A GPU by its data sheet's peak rates, in Tera, and the memory that its driver reports."""
    flops = {"bfloat16": 0.3e12 * bfloat16, "float32": 0.3e12 * float32}
    launch = {"transformers": 1e-3, "vllm": 1e-4}
    return Device(name, "GPU-hours", flops, 0.6e12 * bandwidth, memory, 1.5, 60.0, launch, 60.0)


DEVICES: Mapping[str, Device] = {
    "h100": _gpu("one H100 (SXM, 80 GB)", 989, 67, 3.35, 79.6),
    "h200": _gpu("one H200 (141 GB)", 989, 67, 4.8, 139.8),
    "a100": _gpu("one A100 (40 GB)", 312, 19.5, 1.555, 39.5),
    "cpu": Device(
        "one CPU core",
        "core-hours",
        flops={"bfloat16": 500e9, "float32": 150e9},
        bandwidth=20e9,
        memory=8.0,
        base=0.7,
        around=12.0,
        launch={"transformers": 0.0, "vllm": 0.0},
        moved=(1.8e-7, 3.6e-7),
        launch_pass=2.6e-3,
    ),
}


def as_here(device: Device) -> Device:
    """A device, and of a CPU whether this machine's is fast in bfloat16, where torch can tell."""
    if device.unit != "core-hours" or importlib.util.find_spec("torch") is None:
        return device
    from corea.engines.loading import fast_bfloat16

    return replace(device, fast="bfloat16" if fast_bfloat16() else "float32")


# --- models -----------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What decides the size of a decoder of Llama's kind.

    Example:
        >>> Shape(64, 3, 64, 64, 256, 288).weights
        233920
    """

    width: int
    layers: int
    queries: int  # width of all of them
    keys: int  # and of all keys, which is that of all values
    feed_forward: int
    vocabulary: int
    tied: bool = False  # whether the output layer is the embedding

    @property
    def weights(self) -> int:
        """All weights but biases; those of a tied output layer once."""
        block = 2 * self.width * (self.queries + self.keys + 1)
        block += 3 * self.width * self.feed_forward
        ends = self.vocabulary * (1 if self.tied else 2) + 1
        return self.layers * block + self.width * ends

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied with: all but an embedding that is looked up."""
        return self.weights - (0 if self.tied else self.vocabulary * self.width)

    def adapter(self, rank: int, targets: str = "default") -> int:
        """Weights of LoRA beside queries and values, or with ``"all-linear"`` all linear layers.

        Example:
            >>> shape = HUB["Qwen/Qwen2.5-7B-Instruct"]
            >>> shape.adapter(16), shape.adapter(16, "all-linear")
            (5046272, 40370176)
        """
        ends = 2 * self.width + self.queries + self.keys
        if targets == "all-linear":
            ends = 2 * ends + 3 * (self.width + self.feed_forward)
        return self.layers * rank * ends

    @property
    def cached(self) -> int:
        """Values kept for each token that has been read."""
        return 2 * self.layers * self.keys

    @property
    def saved(self) -> int:
        """Values that a layer saves for the backward pass, for each token."""
        return 8 * self.width + 4 * self.feed_forward + 4 * self.queries + 6 * self.keys


HUB: Mapping[str, Shape] = {  # from the config.json there
    "Qwen/Qwen2.5-0.5B-Instruct": Shape(896, 24, 896, 128, 4864, 151936, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(1536, 28, 1536, 256, 8960, 151936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": Shape(3584, 28, 3584, 512, 18944, 152064),
    "Qwen/Qwen2.5-32B-Instruct": Shape(5120, 64, 5120, 1024, 27648, 152064),
    "Qwen/Qwen3-1.7B": Shape(2048, 28, 2048, 1024, 6144, 151936, tied=True),
    "Qwen/Qwen3-4B": Shape(2560, 36, 4096, 1024, 9728, 151936, tied=True),
    "Qwen/Qwen3-8B": Shape(4096, 36, 4096, 1024, 12288, 151936),
    "meta-llama/Llama-3.1-8B-Instruct": Shape(4096, 32, 4096, 1024, 14336, 128256),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(576, 30, 576, 192, 1536, 49152, tied=True),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": Shape(896, 24, 896, 128, 4864, 151936, tied=True),
}
"""Shapes of the models on the hub that profiles name; any other's is read from the hub's cache."""


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a model's ``config.json`` describes; None for an unknown architecture."""
    if config.get("model_type") not in ("llama", "mistral", "qwen2", "qwen3"):
        return None
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    return Shape(
        width,
        config["num_hidden_layers"],
        head * heads,
        head * (config.get("num_key_value_heads") or heads),
        config["intermediate_size"],
        config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
    )


@dataclass(frozen=True)
class Model:
    """A model that a run starts from."""

    name: str  # on the hub or a server, of a folder, or a size of the microworld
    kind: str  # microworld, hub, folder, gguf or server
    shape: Shape | None  # None: nobody knows
    suite: Suite
    precision: str = "bfloat16"  # of its weights, where it only generates

    @property
    def weights(self) -> float:
        """How many; NaN if nobody knows."""
        return self.shape.weights if self.shape else math.nan


_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@[\w.-]+)?")
_VOCABULARY = microworld.VOCABULARY + 2 + microworld.World().names  # of the microworld's tokenizer


def find_model(profile: Profile, run: str, key: str = "") -> Model:
    """The model that a run starts from, by its parameter ``key`` or by ``model`` or ``base``."""
    parameters = profile.runs[run].parameters
    name = next((parameters[k] for k in (key, "model", "base") if parameters.get(k)), "")
    if folder := TABLES.fullmatch(name):
        found = find_model(profile, folder["run"])
        return replace(found, precision=parameters.get("precision") or found.precision)
    suite = parameters.get("suite", "papers")
    _one_of(run, "suite", suite, SUITES)
    if parameters.get("engine") == "server":  # which has a name of its own for it
        return Model(name, "server", None, SUITES[suite])
    precision = parameters.get("precision") or "bfloat16"
    if is_gguf(name):
        packaged = profile.models.get(name)
        shape = gguf_shape(Path(name)) or (HUB.get(packaged.model) if packaged else None)
        return Model(name, "gguf", shape, SUITES[suite], precision)
    if Path(name, "config.json").is_file() and name:
        shape = _read_shape(Path(name, "config.json"))
        return Model(name, "folder", shape, SUITES[suite], precision)
    if hub := _HUB_NAME.fullmatch(name):
        shape, config = HUB.get(hub["name"]), cached_config(name)
        shape = _read_shape(config) if config and not shape else shape
        return Model(name, "hub", shape, SUITES[suite], precision)
    if name or "role" not in parameters or "model" in parameters:
        raise PipelineError(f"{run}: {name!r} is neither a model's folder nor a name on the hub")
    _one_of(run, "role", role := parameters["role"], microworld.PRESETS)
    size = microworld.PRESETS[role]
    width = size.hidden_size
    shape = Shape(width, size.n_layers, width, width, 4 * width, _VOCABULARY)
    return Model(f"microworld, {role}", "microworld", shape, MICROWORLD, parameters["precision"])


def gguf_shape(path: Path) -> Shape | None:
    """The shape that a GGUF file's header describes; None where it is not there, or not read."""
    if not path.is_file() or importlib.util.find_spec("gguf") is None:
        return None
    try:
        header = read_header(path)
    except ModelError as error:
        raise PipelineError(visible(error)) from error
    if header.architecture not in ("llama", "qwen2", "qwen3"):
        return None
    width, heads = header.number("embedding_length"), header.number("attention.head_count")
    head = header.number("attention.key_length") or width // heads
    return Shape(
        width,
        header.number("block_count"),
        head * heads,
        head * (header.number("attention.head_count_kv") or heads),
        header.number("feed_forward_length"),
        header.tensors["token_embd.weight"][0][1],
        tied="output.weight" not in header.tensors,
    )


def _read_shape(config: Path) -> Shape | None:
    try:
        return shape_of(json.loads(config.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {visible(error)}"
        raise PipelineError(f"{config}: not a model's configuration ({reason})") from error


def cached_config(model: str) -> Path | None:
    """The ``config.json`` of a hub model in the hub's cache; None if it was not downloaded."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    name, _, revision = model.partition("@")
    commit = revision or REVISIONS.get(name)
    found = try_to_load_from_cache(name, "config.json", revision=commit)
    return Path(found) if isinstance(found, str) else None


def _one_of(where: str, name: str, value: object, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise PipelineError(f"{where}: {name} is {value!r}; expected one of {', '.join(known)}")


# --- time and memory --------------------------------------------------------------------------


class Training(NamedTuple):
    """How a model is trained."""

    precision: str = "float32"  # or bfloat16, by autocast
    rank: int = 0  # of LoRA's adapter; 0: all weights are trained
    targets: str = "default"  # what the adapter is beside, as for Shape.adapter
    checkpointing: bool = False
    processes: int = 1
    sharded: str = "none"  # or "states" (gradients and moments), or "all" (weights too)

    @property
    def stored(self) -> str:
        """Precision of the weights while they are trained, or beside what is trained."""
        return self.precision if self.rank else "float32"

    def operations(self, shape: Shape) -> int:
        """Floating-point operations for each token (point 1)."""
        again = 2 * self.checkpointing
        if not self.rank:
            return (6 + again) * shape.multiplied
        adapter = shape.adapter(self.rank, self.targets)
        return (4 + again) * shape.multiplied + (6 + again) * adapter


def read_training(settings: Mapping[str, Any], device: Device) -> Training:
    """How the settings of a training, and the accelerate file beside them, say it trains."""
    return Training(
        device.precision(settings["precision"]),
        settings["lora_rank"],
        settings["lora_targets"],
        settings["gradient_checkpointing"],
        *accelerated(settings.get("accelerate", "")),
    )


class Draw(NamedTuple):
    """Completions that are drawn."""

    rows: float
    prompt: float  # tokens of a prompt
    completion: float  # of a completion, on average
    longest: int  # of one that is cut
    at_once: int  # rows of a batch; vLLM is given as many


def training_seconds(
    shape: Shape, tokens: float, passes: float, device: Device, how: Training
) -> float:
    """Time of one device to train on tokens, those of prompts too, in so many passes."""
    moved = shape.layers * shape.width * device.moving(0, how.precision)
    each = how.operations(shape) / device.flops[how.precision] + moved
    return tokens * each + passes * shape.layers * device.launch_pass


def reading_seconds(shape: Shape, tokens: float, device: Device, precision: str) -> float:
    """Time of one device to read tokens that are there already, without gradients."""
    moved = shape.layers * shape.width * device.moving(0, precision) / 3  # of three passes one
    return tokens * (2 * shape.multiplied / device.flops[precision] + moved)


def generation_seconds(
    shape: Shape, draw: Draw, device: Device, precision: str, engine: str = "transformers"
) -> float:
    """Time of one device to draw completions; infinite if not one row fits (points 3 and 4)."""
    size, steps = _BYTES[precision], float(draw.longest)
    if engine == "vllm":
        fitting = fitting_rows(shape, draw, device, precision)
        given = min(draw.rows, draw.at_once)
        steps = max(steps, given * draw.completion / fitting) if fitting else math.inf
    steps *= math.ceil(draw.rows / draw.at_once)
    step = shape.layers * device.launch[engine] + size * shape.multiplied / device.bandwidth
    cached = size * shape.cached * (draw.prompt + draw.completion / 2)
    drawn = 2 * shape.multiplied / device.flops[precision] + cached / device.bandwidth
    drawn += shape.layers * shape.width * device.moving(1, precision)
    prompts = reading_seconds(shape, draw.rows * draw.prompt, device, precision)
    return steps * step + draw.rows * draw.completion * drawn + prompts


def fitting_rows(shape: Shape, draw: Draw, device: Device, precision: str) -> float:
    """Rows whose cache fits beside the weights in vLLM's 90 % of the memory, at most 256."""
    free = 0.9 * device.memory * GIB - _BYTES[precision] * shape.weights
    row = _BYTES[precision] * shape.cached * (draw.prompt + draw.completion)
    return float(min(256, max(0, math.floor(free / row))))


def generation_gib(
    shape: Shape, draw: Draw, device: Device, precision: str, engine: str = "transformers"
) -> float:
    """Most memory that generation makes use of at once (point 6)."""
    rows, length = min(draw.rows, draw.at_once), draw.prompt + draw.longest
    if engine == "vllm":
        rows = min(rows, max(1.0, fitting_rows(shape, draw, device, precision)))
        length = draw.prompt + draw.completion
    values = shape.weights + rows * length * shape.cached
    exact = 4 * shape.vocabulary * (2 * rows)
    if engine == "transformers" and precision == "bfloat16":
        exact += 4 * shape.vocabulary * shape.width
    return device.base + (_BYTES[precision] * values + exact) / GIB


def training_gib(
    shape: Shape,
    device: Device,
    how: Training,
    rows: float,
    length: float,
    *,
    reference: bool = False,
    cached_tokens: float = 0.0,
) -> float:
    """Most memory that each process holds at once (point 5), in passes of rows of this length.

    ``reference``: whether a divergence keeps a copy of the first weights, which with LoRA are those
    without the adapter; ``cached_tokens``: of rollouts that are made at once, between two steps.
    """
    size, trained = _BYTES[how.stored], shape.weights
    weights = float(size * shape.weights) * (2 if reference and not how.rank else 1)
    if how.rank:
        trained = shape.adapter(how.rank, how.targets)
        weights += 4 * trained
    states = 12.0 * trained / (1 if how.sharded == "none" else how.processes)
    weights /= how.processes if how.sharded == "all" else 1
    copied = how.precision == "bfloat16" and size == 4 and how.sharded != "all"
    saved = shape.saved * (1 if how.checkpointing else shape.layers)
    saved += shape.layers * shape.width * how.checkpointing
    passes = rows * length * saved * _BYTES[how.precision]
    working = max(passes, size * cached_tokens * shape.cached)
    return device.base + (weights + states + 2 * shape.weights * copied + working) / GIB


# --- work -------------------------------------------------------------------------------------


class Text(NamedTuple):
    """How long the texts of a dataset are, in tokens, on average."""

    prompt: float
    completion: float | None = None  # None: half of what it may have
    tests: int | None = None  # questions of the test part; None: as many as are asked for

    def written(self, longest: int) -> float:
        """Tokens of a completion that may have so many."""
        return longest / 2 if self.completion is None else min(self.completion, longest)


TEXTS: Mapping[str, Text] = {
    # of the microworld: as measured in the profile laptop
    "corpus": Text(10.4, 34.0),
    "decision_corpus": Text(8.9, 9.3),
    "chains": Text(8.4, 34.5),
    "additions": Text(11.2, 29.2),
    "words": Text(15.4, 35.4),
    "long_chains": Text(14.0, 57.0),
    "fact_sums": Text(11.5, 33.0),
    "facts": Text(7.8, 17.3),
    "choices": Text(7.7, 15.7),
    "fact_choices": Text(14.5, 15.5),
    "messages": Text(6.5, 11.4),
    "lists": Text(12.0, 14.0),
    # generated, with the chat template of SmolLM2, after a warm-up
    "sums": Text(112, 36.0, tests=1000),
    "long_sums": Text(118, 60.0, tests=1000),
    "products": Text(112, 26.0, tests=1000),
    "sum_choices": Text(170, 60.0, tests=1000),
    "product_choices": Text(170, 60.0, tests=1000),
    "sum_checks": Text(150, 60.0, tests=1000),
    "product_checks": Text(150, 60.0, tests=1000),
    # of the papers: characters / 4 with the instruction, and 30 tokens of a chat template
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
_DIRECT_PROMPT, _DIRECT = 4, 2  # tokens where a decision is not reasoned: more, and of a completion


@dataclass(frozen=True)
class Job:
    """One thing that a run does with a model."""

    what: str
    model: Model
    datasets: tuple[str, ...]
    prompt_tokens: float = 0.0
    sampled_tokens: float = 0.0
    trained_tokens: float = 0.0  # in forward and backward passes, those of prompts too
    seconds: float = math.nan  # of one device; NaN if the model's shape is not known
    gib: float = math.nan  # of each device; likewise
    devices: int = 1


Settings = Mapping[str, Any]


def _supervise(job: Job, s: Settings, device: Device) -> Job:
    """Supervised training on rows of a corpus, in parts of 8, or on questions and bare answers."""
    corpus, text = job.datasets[0].endswith("corpus"), TEXTS[job.datasets[0]]
    # a row of a corpus is whole
    length = text.prompt + (text.written(1000) if corpus else _DIRECT_PROMPT + _DIRECT)
    rows = s["steps"] * s["batch"]
    job = replace(job, trained_tokens=rows * length)
    if (shape := job.model.shape) is None:
        return job
    how = read_training(s, device)
    seconds = training_seconds(shape, rows * length, rows / s["micro_batch"], device, how)
    gib = training_gib(shape, device, how, s["micro_batch"], length)
    return replace(job, seconds=seconds, gib=gib, devices=how.processes)


def _warm_up(job: Job, s: Settings, device: Device) -> Job:
    """Reasoning about questions, and supervised training on it and on bare decisions by turns."""
    n, longest = s["n_warm_up"] // len(job.datasets), s["warm_up_tokens"]
    asked = {"n_questions": n, "part": "train", "n_samples": 1, "max_completion_tokens": longest}
    job = _generate(job, {**s, **asked}, device)
    prompt = sum(TEXTS[name].prompt for name in job.datasets) / len(job.datasets)
    written = sum(TEXTS[name].written(longest) for name in job.datasets) / len(job.datasets)
    rows, length = s["steps"] * s["batch"], prompt + (written + _DIRECT_PROMPT + _DIRECT) / 2
    job = replace(job, trained_tokens=rows * length)
    if (shape := job.model.shape) is None:
        return job
    how = read_training(s, device)
    seconds = training_seconds(shape, rows * length, rows / s["micro_batch"], device, how)
    gib = training_gib(shape, device, how, s["micro_batch"], prompt + written)
    return replace(job, seconds=job.seconds + seconds, gib=max(job.gib, gib))


def _reinforce(job: Job, s: Settings, device: Device) -> Job:
    """GRPO: rollouts, their forward and backward passes, and validation."""
    text, longest = TEXTS[job.datasets[0]], s["max_completion_tokens"]
    completion = text.written(longest)
    length, rows = text.prompt + completion, s["steps"] * s["batch"]
    validated = (s["steps"] // s["checkpoint_every"] + 1) * s["n_validation"] * s["group_size"]
    drawn, trained = rows + validated, rows * length
    job = replace(
        job,
        prompt_tokens=drawn * text.prompt,
        sampled_tokens=drawn * completion,
        trained_tokens=trained,
    )
    if (shape := job.model.shape) is None:
        return job
    how, rollouts = read_training(s, device), s["rollouts"]
    steps_per_rollout, micro = s["steps_per_rollout"], s["micro_batch"]
    engine, stored = "transformers", how.stored
    if in_vllm := rollouts.startswith("vllm"):
        engine, stored = "vllm", "bfloat16"
    at_once = s["batch"] * steps_per_rollout  # of which each process makes its own
    at_once //= how.processes if rollouts != "vllm_server" else 1

    # log-probabilities are read before the step where several steps share a rollout or vLLM made
    # it; those of the base model, for a divergence; and those of what is validated
    before, reference = steps_per_rollout > 1 or in_vllm, s["kl_coef"] > 0
    read = (rows * (before + reference) + validated * (1 + reference)) * length
    if every := s.get("cosine_every", 0):  # two more backward passes: 8N operations beside the 6N
        trained += s["steps"] // every * s["batch"] * length * 8 / 6
    draw = Draw(drawn, text.prompt, completion, longest, at_once)
    seconds = training_seconds(shape, trained, rows / micro, device, how)
    seconds += reading_seconds(shape, read, device, how.precision)
    seconds += generation_seconds(shape, draw, device, stored, engine)
    most = text.prompt + longest
    cached = 0 if in_vllm else at_once * most
    gib = training_gib(shape, device, how, micro, most, reference=reference, cached_tokens=cached)
    if rollouts == "vllm_colocate":
        gib += s["vllm_memory_share"] * device.memory
    devices = how.processes + (rollouts == "vllm_server")
    return replace(job, seconds=seconds, gib=gib, devices=devices)


def _generate(job: Job, s: Settings, device: Device, candidates: int = 0) -> Job:
    """Decisions; each is read once more for its probability, with the candidates' tokens."""
    longest, direct = s["max_completion_tokens"], not s.get("reasoning", True)
    longest = min(_DIRECT, longest) if direct else longest
    draws = []
    shown = s.get("n_examples", 0) * TEXTS[job.datasets[0]].prompt  # of what is trained on
    for name in job.datasets:
        rows = _questions(name, s.get("part", "test"), s["n_questions"]) * s["n_samples"]
        written = longest if direct else TEXTS[name].written(longest)
        prompt = shown + TEXTS[name].prompt + _DIRECT_PROMPT * direct
        draws.append(Draw(rows, prompt, written, longest, s["batch_size"]))
    job = replace(
        job,
        prompt_tokens=sum(draw.rows * draw.prompt for draw in draws),
        sampled_tokens=sum(draw.rows * draw.completion for draw in draws),
    )
    engine, precision = s.get("engine", "transformers"), device.precision(job.model.precision)
    if engine == "server":
        return replace(job, what=f"{job.what} by a server", seconds=0.0, gib=0.0, devices=0)
    if (shape := job.model.shape) is None:
        return job
    seconds = device.startup * s.get("openings", 1) * (engine == "vllm")
    if not (direct and s.get("test_decisions") == "options"):  # which are read, and not written
        seconds += sum(generation_seconds(shape, draw, device, precision, engine) for draw in draws)
    if engine != "vllm":  # which has prompt and completion in its cache still
        again = sum(draw.rows * (draw.prompt + draw.completion + candidates) for draw in draws)
        seconds += reading_seconds(shape, again, device, precision)
    gib = max(generation_gib(shape, draw, device, precision, engine) for draw in draws)
    return replace(job, seconds=seconds, gib=gib)


def _evaluate(job: Job, s: Settings, device: Device) -> Job:
    """Answers in words, each with its expected confidence (:mod:`corea.confidence`)."""
    return _generate(job, s, device, candidates=4 * len(CONFIDENCE_GRID))


def _read(job: Job, s: Settings, device: Device) -> Job:
    """Answers that are there already, read once more."""
    drawn = _generate(job, {**s, "engine": "transformers"}, device)
    precision = device.precision(job.model.precision)
    if job.model.shape is None:
        return job
    tokens = drawn.prompt_tokens + drawn.sampled_tokens
    seconds = reading_seconds(job.model.shape, tokens, device, precision)
    return replace(job, seconds=seconds, gib=drawn.gib)


def _questions(dataset: str, part: str, n: int) -> int:
    """How many questions are asked, where at most ``n`` are, or all for 0."""
    available = TEXTS[dataset].tests
    if part != "test" and dataset in DATASETS:
        stretch = DATASETS[dataset].parts[part].stretch
        available = stretch[1] - stretch[0] if stretch else None
    return n if available is None else min(n or available, available)


RULES: Mapping[str, tuple[Callable[[Job, Settings, Device], Job], str, str]] = {
    "pretrain": (_supervise, "corpus", "pretraining"),
    "supervise": (_supervise, "trained", "SFT"),
    "reinforce": (_reinforce, "trained", "GRPO"),
    "reinforce_decisions": (_reinforce, "trained", "GRPO"),
    "warm_up": (_warm_up, "trained", "warm-up"),
    "evaluate": (_evaluate, "answers", "answers"),
    "decide": (_generate, "decisions", "decisions"),
    "read": (_read, "answers", "reading answers"),
}
"""What a notebook may do with a model, the dataset unless it says otherwise, and how it is told."""


def run_jobs(profile: Profile, name: str, device: Device) -> list[Job]:
    """What a run does with models, and what that takes; nothing if it only reads tables."""
    run = profile.runs[name]
    _one_of(name, "engine", run.parameters.get("engine", "transformers"), ENGINES)
    try:
        return [
            job
            for item in items(run.notebook, run.parameters)
            for job in _item_jobs(profile, run, item, device)
        ]
    except KeyError as error:
        raise PipelineError(
            f"{name}: {run.notebook} has no parameter {error}, from which it would be estimated"
        ) from error


def _item_jobs(profile: Profile, run: Run, item: Mapping[str, Any], device: Device) -> list[Job]:
    """The jobs of one item of a notebook's work, one for each model it uses."""
    _one_of(str(run.notebook), "rule", item["rule"], RULES)
    rule, dataset, what = RULES[item["rule"]]
    settings, jobs = item_settings(item, run.parameters), []
    if "of" in item:
        folders = [TABLES.fullmatch(text) for key in item["of"] for text in run.parameters[key]]
        read = [profile.runs[folder["run"]] for folder in folders if folder]
        models = [(find_model(profile, other.name), other) for other in read]
    else:
        models = [(find_model(profile, run.name, item.get("model", "")), run)]
    for model, asked in models:
        tasks = model.suite.tasks
        task = asked.parameters.get("task")
        _one_of(run.name, "task", task or next(iter(tasks)), tasks)
        pairs = [tasks[task]] if task else [*tasks.values()]
        decides = bool(task) or item["rule"] in ("decide", "warm_up")
        choices = {
            "answers": model.suite.datasets,
            "decisions": tuple(name for pair in pairs for name in pair),
            "trained": tuple(p[0] for p in pairs) if decides else (model.suite.domain,),
        }
        chosen = item.get("dataset", dataset)
        job = Job(item.get("what", what), model, choices.get(chosen, (chosen,)))
        jobs.append(rule(job, settings, device))
    return jobs
