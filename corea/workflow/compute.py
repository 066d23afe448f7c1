r"""What a language model takes: weights, operations, seconds and memory, estimated before it runs.

With N weights, A those of a LoRA adapter, in a model of L layers and width d:

1. Reading a token takes 2N floating-point operations, one multiplication and one addition a weight
   (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; an input embedding that is only looked up is
   not counted). Training takes 6N: the backward pass needs 2N for the gradients of the activations
   and 2N for those of the weights. With gradient checkpointing it is 8N, for the forward pass is
   made a second time (Korthikanti et al. 2022, arXiv 2205.05198, section 5). With LoRA (Hu et al.
   2021, arXiv 2106.09685) the frozen weights get no gradients: 4N + 6A, and 6N + 8A. Attention
   over earlier tokens is left out: 4 % for a model of 7 billion weights at 3,000 tokens.
2. Operations take seconds by the device's rate and the share of it that is reached, its model FLOP
   utilisation. Chowdhery et al. 2022 (arXiv 2204.02311, section 4.1) reach 0.46 with a training
   system made for it; the 0.3 here is our assumption for one process of TRL or transformers.
3. Generation is bound by memory (Pope et al. 2022, arXiv 2211.05102, section 2): each step reads
   all weights once, whatever the number of rows, and the cache of each row. A step takes at least
   a time for each layer, in which the host starts its kernels: on a GPU 1 ms in transformers, where
   Python starts each, and 0.1 ms in vLLM, which replays a recorded graph; both are our assumptions.
   Rows of transformers' engine are a batch, which goes on until its longest has ended; vLLM takes a
   new row whenever one ends, as many as fit into 90 % of the memory. To start it takes a minute
   (:data:`STARTUP`, our assumption), each time a model is opened.
4. On a CPU small models spend most of their time moving activations, which takes time by L times d
   for each token. How much, for training and for generation, is what the committed measurements of
   one core (:mod:`corea.book.speed`) leave beyond point 1.
5. Memory of training: weights, gradients and two moments of AdamW, 4 bytes each in float32; with
   bfloat16 2 bytes more, for the copy that autocast makes of each weight. Weights that LoRA leaves
   as they are take 2 bytes with bfloat16, and have neither gradients nor moments. The backward pass
   needs 8 d + 4 f + 4 h + 6 k activations a token and layer (f: width of the feed-forward block, h
   and k: of all queries and of all keys), counted by us for Qwen2, Qwen3 and Llama in
   transformers; with checkpointing d, and all of them for one layer. TRL computes logits in tiles,
   which do not count.
6. Memory of generation: weights, a cache of 2 L k values for each token of each row, and logits.
7. A GPU holds about 1.5 GiB, a process on a CPU 0.7 GiB besides.

Everything is an order of magnitude, not a promise: hours are right within a factor of about 3, on a
CPU of 2; memory within a factor of 1.5. It was compared with what the profile laptop took, run by
run (:func:`corea.workflow.plan.measured`); with GRPO of its small and large model, which held 1.18
and 1.99 GiB and are estimated at 1.15 and 1.91; and with paper B, whose experiments took "roughly
500" hours of A100s with 40 GB, and whose twelve GRPO runs come to 330 here. No estimate of a GPU
was compared with a run of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from corea.book import speed

GIB = 2**30
BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2})
"""Of a value, by precision."""


# --- models -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What decides a model's size: a decoder of Llama's kind.

    Attributes:
        hidden_size: Width d.
        n_layers: Blocks, L.
        n_heads: Attention heads.
        n_kv_heads: Heads of keys and values, which others share.
        intermediate_size: Width f of the feed-forward block.
        vocab_size: Tokens.
        head_dim: Width of a head.
        tied: Whether the output layer is the embedding.
        biased: Whether queries, keys and values have biases, as in Qwen2.
        normed: Whether queries and keys are normalised, as in Qwen3.

    Example:
        >>> Shape(64, 3, 2, 2, 256, 288, 32, biased=True).weights
        234496
    """

    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    intermediate_size: int
    vocab_size: int
    head_dim: int
    tied: bool = False
    biased: bool = False
    normed: bool = False

    @property
    def _widths(self) -> tuple[int, int]:
        """Of all queries, and of all keys."""
        return self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim

    @property
    def weights(self) -> int:
        """All weights; those of a tied output layer once."""
        d, (h, k) = self.hidden_size, self._widths
        attention = d * (h + 2 * k) + h * d + self.biased * (h + 2 * k)
        attention += self.normed * 2 * self.head_dim
        block = attention + 3 * d * self.intermediate_size + 2 * d
        return self.n_layers * block + d + self.vocab_size * d * (1 if self.tied else 2)

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied with: all but an embedding that is looked up."""
        return self.weights - (0 if self.tied else self.vocab_size * self.hidden_size)

    def adapter(self, rank: int, targets: str = "default") -> int:
        """Weights of LoRA.

        Args:
            rank: Of the adapter; 0: none.
            targets: ``"default"``, queries and values, or ``"all-linear"``, all linear layers of
                the blocks.

        Returns:
            Their number.

        Example:
            >>> shape = HUB["Qwen/Qwen2.5-7B-Instruct"]
            >>> shape.adapter(16), shape.adapter(16, "all-linear")
            (5046272, 40370176)
        """
        d, f, (h, k) = self.hidden_size, self.intermediate_size, self._widths
        ends = (d + h) + (d + k)
        if targets == "all-linear":
            ends = 2 * ends + 3 * (d + f)
        return self.n_layers * rank * ends

    @property
    def cached(self) -> int:
        """Values kept for each token that has been read."""
        return 2 * self.n_layers * self._widths[1]

    @property
    def saved(self) -> int:
        """Values that a block saves for the backward pass, for each token."""
        h, k = self._widths
        return 8 * self.hidden_size + 4 * self.intermediate_size + 4 * h + 6 * k


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a model's ``config.json`` describes.

    Args:
        config: Its content.

    Returns:
        The shape, or None for an architecture that is not known here.

    Raises:
        KeyError: If a field is missing; names it.

    Example:
        >>> shape_of({"model_type": "mamba"}) is None
        True
    """
    kind = config.get("model_type")
    if kind not in ("llama", "mistral", "qwen2", "qwen3"):
        return None
    heads, width = config["num_attention_heads"], config["hidden_size"]
    return Shape(
        hidden_size=width,
        n_layers=config["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        head_dim=config.get("head_dim") or width // heads,
        tied=bool(config.get("tie_word_embeddings", False)),
        biased=kind == "qwen2",
        normed=kind == "qwen3",
    )


_Sizes = tuple[int, int, int, int, int, int, int]


def _qwen2(*sizes: *_Sizes, tied: bool = False) -> Shape:
    return Shape(*sizes, tied=tied, biased=True)


def _qwen3(*sizes: *_Sizes, tied: bool = False) -> Shape:
    return Shape(*sizes, tied=tied, normed=True)


# width, layers, heads, of keys, feed-forward, vocabulary, width of a head
HUB: Mapping[str, Shape] = MappingProxyType(
    {
        "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(896, 24, 14, 2, 4864, 151936, 64, tied=True),
        "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(1536, 28, 12, 2, 8960, 151936, 128, tied=True),
        "Qwen/Qwen2.5-3B-Instruct": _qwen2(2048, 36, 16, 2, 11008, 151936, 128, tied=True),
        "Qwen/Qwen2.5-7B-Instruct": _qwen2(3584, 28, 28, 4, 18944, 152064, 128),
        "Qwen/Qwen2.5-14B-Instruct": _qwen2(5120, 48, 40, 8, 13824, 152064, 128),
        "Qwen/Qwen2.5-32B-Instruct": _qwen2(5120, 64, 40, 8, 27648, 152064, 128),
        "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 8, 6144, 151936, 128, tied=True),
        "Qwen/Qwen3-4B": _qwen3(2560, 36, 32, 8, 9728, 151936, 128, tied=True),
        "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 8, 12288, 151936, 128),
        "meta-llama/Llama-3.1-8B-Instruct": Shape(4096, 32, 32, 8, 14336, 128256, 128),
    }
)
"""Shapes of models on the hub, from the ``config.json`` there; their weights are the numbers that
the hub counts in their safetensors (Qwen3-1.7B stores its tied output layer a second time)."""

GATED = ("meta-llama/",)
"""How the names of models begin that the hub gives only after an agreement."""


# --- devices ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """What computes.

    Attributes:
        name: In words.
        unit: What its time is counted in.
        flops: Operations a second by precision, at most.
        utilisation: Share of them that is reached.
        bandwidth: Bytes a second between memory and processor, at most.
        share: Of the bandwidth that is reached.
        memory: In GiB.
        base: GiB that are taken before a model is loaded.
        launch: Seconds a layer takes in each step of generation at least, by engine.
    """

    name: str
    unit: str
    flops: Mapping[str, float]
    utilisation: float
    bandwidth: float
    share: float
    memory: float
    base: float
    launch: Mapping[str, float]


STARTUP: Mapping[str, float] = MappingProxyType({"vllm": 60.0})
"""Seconds until an engine answers, beyond reading the weights."""

_LAUNCH = {"transformers": 1e-3, "vllm": 1e-4}


def _gpu(name: str, bfloat16: float, float32: float, bandwidth: float, memory: float) -> Device:
    flops = {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}
    return Device(name, "GPU-hours", flops, 0.3, bandwidth * 1e12, 0.6, memory, 1.5, _LAUNCH)


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "h100": _gpu("one H100 (SXM, 80 GB)", 989, 67, 3.35, 79.6),
        "h200": _gpu("one H200 (141 GB)", 989, 67, 4.8, 139.8),
        "a100": _gpu("one A100 (40 GB)", 312, 19.5, 1.555, 39.5),
        "cpu": Device(
            "one CPU core",
            "core-hours",
            {"bfloat16": 150e9, "float32": 150e9},
            1.0,
            10e9,
            1.0,
            8.0,
            0.7,
            {"transformers": 0.0, "vllm": 0.0},
        ),
    }
)
"""GPUs: peak rates without sparsity and bandwidths of NVIDIA's data sheets, memory as the driver
reports it. CPU: products of matrices of the microworld's sizes ran at 155 to 168 billion operations
a second in float32 on one core of the machine of the committed measurements."""


def _moved(shape: Shape, device: Device) -> tuple[float, float]:
    """Seconds a token takes beyond its operations, in training and in generation."""
    if device.unit != "core-hours":  # on a GPU the utilisation stands for it
        return 0.0, 0.0
    training, generation = moving()
    places = shape.n_layers * shape.hidden_size
    return places * training, places * generation


def _rate(device: Device, precision: str = "float32") -> float:
    return device.flops[precision] * device.utilisation


# --- time -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        precision: ``"float32"`` or ``"bfloat16"`` (autocast).
        lora_rank: Of the adapter that is trained; 0: all weights are.
        lora_targets: What it is beside, as for :meth:`Shape.adapter`.
        checkpointing: Whether activations are computed again in the backward pass.
        processes: How many train together.
        sharded: What they share out: ``"none"``, ``"states"`` (gradients and moments, ZeRO-2) or
            ``"all"`` (weights too: ZeRO-3, FSDP).
    """

    precision: str = "float32"
    lora_rank: int = 0
    lora_targets: str = "default"
    checkpointing: bool = False
    processes: int = 1
    sharded: str = "none"

    @property
    def stored(self) -> str:
        """Precision of the weights while they are trained, or beside what is trained."""
        return self.precision if self.lora_rank else "float32"

    def operations(self, shape: Shape) -> int:
        """Floating-point operations for each token (point 1).

        Args:
            shape: Of the model.

        Returns:
            Their number.

        Example:
            >>> small = Shape(64, 3, 2, 2, 256, 288, 32, biased=True)
            >>> Training().operations(small) == 6 * (234496 - 288 * 64)
            True
        """
        again = 2 * self.checkpointing
        if not self.lora_rank:
            return (6 + again) * shape.multiplied
        adapter = shape.adapter(self.lora_rank, self.lora_targets)
        return (4 + again) * shape.multiplied + (6 + again) * adapter


def training_seconds(shape: Shape, tokens: float, device: Device, how: Training) -> float:
    """Time to train on tokens, those of prompts too.

    Args:
        shape: Of the model.
        tokens: How many.
        device: The device.
        how: How the model is trained.

    Returns:
        Seconds of one device, all processes together.
    """
    rate = _rate(device, how.precision)
    return tokens * (how.operations(shape) / rate + _moved(shape, device)[0])


@cache
def moving() -> tuple[float, float]:
    """Seconds that a CPU core takes to move activations (point 4).

    Returns:
        For each token, layer and unit of width, in training and in generation.
    """
    # the model and the questions of the measurements are those of the profile `laptop`
    core, shape = DEVICES["cpu"], Shape(64, 3, 2, 2, 256, 542, 32, biased=True)
    rows, prompt = int(speed.facts("training")["completions a step"]), 8.4
    parts = speed.step_parts(speed.measured("parts"))
    seconds = dict(zip(parts["part"], parts["milliseconds"] / 1000, strict=True))
    rollouts = speed.measured("rollouts").query("way == 'in training'")
    sampled = float(rollouts["tokens"].median())
    places = shape.n_layers * shape.hidden_size

    steps = sum(seconds.values()) - seconds["rollouts"]
    tokens = rows * prompt + sampled
    training = (steps - tokens * Training().operations(shape) / _rate(core)) / tokens / places
    # prompts are read as in training, a third of which is the forward pass
    draw = Draw(rows, prompt, sampled / rows, 64, rows)
    counted = _counted_seconds(shape, draw, core, "float32", "transformers")
    counted += rows * prompt * places * training / 3
    return training, (seconds["rollouts"] - counted) / sampled / places


def reading_seconds(shape: Shape, tokens: float, device: Device, precision: str) -> float:
    """Time to read tokens that are there already, without gradients.

    Args:
        shape: Of the model.
        tokens: How many.
        device: The device.
        precision: ``"float32"`` or ``"bfloat16"``.

    Returns:
        Seconds of one device.
    """
    operations = 2 * shape.multiplied
    return tokens * (operations / _rate(device, precision) + _moved(shape, device)[0] / 3)


@dataclass(frozen=True)
class Draw:
    """Completions that are drawn.

    Attributes:
        rows: How many.
        prompt: Tokens of a prompt.
        completion: Tokens of a completion, on average.
        longest: Tokens at which a completion is cut.
        at_once: Rows of a batch; vLLM is given as many.
    """

    rows: float
    prompt: float
    completion: float
    longest: int
    at_once: int


def generation_seconds(
    shape: Shape, draw: Draw, device: Device, precision: str, engine: str = "transformers"
) -> float:
    """Time to draw completions (points 3 and 4).

    Args:
        shape: Of the model.
        draw: What is drawn.
        device: The device.
        precision: Of the weights, ``"float32"`` or ``"bfloat16"``.
        engine: ``"transformers"`` or ``"vllm"``.

    Returns:
        Seconds of one device; infinite if not even one row fits into its memory.

    Example:
        Two hundred rows read the weights once a step, as one does:

        >>> model, gpu = HUB["Qwen/Qwen2.5-7B-Instruct"], DEVICES["h100"]
        >>> one, many = (
        ...     generation_seconds(model, Draw(rows, 100, 500, 1000, 200), gpu, "bfloat16")
        ...     for rows in (1, 200)
        ... )
        >>> many < 2 * one
        True
    """
    prompts, sampled = draw.rows * draw.prompt, draw.rows * draw.completion
    reading, generation = _moved(shape, device)
    counted = _counted_seconds(shape, draw, device, precision, engine)
    return counted + prompts * reading / 3 + sampled * generation


def _counted_seconds(
    shape: Shape, draw: Draw, device: Device, precision: str, engine: str
) -> float:
    """What generation takes but for what a CPU moves."""
    bandwidth = device.bandwidth * device.share
    steps = float(draw.longest)
    if engine == "vllm":
        fitting = fitting_rows(shape, draw, device, precision)
        given = min(draw.rows, draw.at_once)
        steps = max(steps, given * draw.completion / fitting) if fitting else math.inf
    steps *= math.ceil(draw.rows / draw.at_once)
    step = shape.n_layers * device.launch[engine] + BYTES[precision] * shape.multiplied / bandwidth
    cached = BYTES[precision] * shape.cached * (draw.prompt + draw.completion / 2)
    tokens = draw.rows * (draw.prompt + draw.completion)
    operations = tokens * 2 * shape.multiplied / _rate(device, precision)
    return steps * step + draw.rows * draw.completion * cached / bandwidth + operations


# --- memory -----------------------------------------------------------------------------------

_VLLM_SHARE = 0.9  # of the memory that vLLM takes unless it is told otherwise
_VLLM_ROWS = 256


def fitting_rows(shape: Shape, draw: Draw, device: Device, precision: str) -> float:
    """Rows of average length whose cache fits beside the weights in what vLLM takes.

    Args:
        shape: Of the model.
        draw: What is drawn.
        device: The device.
        precision: Of the weights and the cache.

    Returns:
        How many, at most 256 (vLLM's own limit); 0 if the weights leave no room.
    """
    free = _VLLM_SHARE * device.memory * GIB - BYTES[precision] * shape.weights
    row = BYTES[precision] * shape.cached * (draw.prompt + draw.completion)
    return float(min(_VLLM_ROWS, max(0, math.floor(free / row))))


def generation_gib(
    shape: Shape, draw: Draw, device: Device, precision: str, engine: str = "transformers"
) -> float:
    """Most memory that generation holds at once (point 6).

    Args:
        shape: Of the model.
        draw: What is drawn.
        device: The device.
        precision: Of the weights and the cache.
        engine: ``"transformers"`` or ``"vllm"``.

    Returns:
        GiB. vLLM takes 90 % of a GPU whatever it needs; this is what it makes use of.
    """
    if engine == "vllm":
        rows = min(draw.rows, draw.at_once, max(1.0, fitting_rows(shape, draw, device, precision)))
        length = draw.prompt + draw.completion
    else:
        rows, length = min(draw.rows, draw.at_once), draw.prompt + draw.longest
    values = shape.weights + rows * length * shape.cached
    return device.base + (BYTES[precision] * values + rows * shape.vocab_size * 4 * 2) / GIB


def training_gib(
    shape: Shape,
    device: Device,
    how: Training,
    *,
    rows: int,
    length: float,
    reference: bool = False,
    cached_tokens: float = 0.0,
) -> float:
    """Most memory that training holds at once, in each process (point 5).

    Args:
        shape: Of the model.
        device: The device.
        how: How the model is trained.
        rows: Sequences of the forward and backward pass.
        length: Their tokens.
        reference: Whether a copy of the first weights is kept, for a KL divergence.
        cached_tokens: Tokens of rollouts that are made at once, between two steps.

    Returns:
        GiB.

    Example:
        16 bytes a weight, where nothing is computed:

        >>> small, core = Shape(64, 3, 2, 2, 256, 288, 32, biased=True), DEVICES["cpu"]
        >>> gib = training_gib(small, core, Training(), rows=0, length=0)
        >>> round((gib - core.base) * GIB / small.weights, 6)
        16.0
    """
    size = BYTES[how.stored]
    weights = float(size * shape.weights)
    if how.lora_rank:  # a KL divergence needs no copy: it is taken without the adapter
        trained = shape.adapter(how.lora_rank, how.lora_targets)
        weights += 4 * trained
    else:
        trained = shape.weights
        weights *= 2 if reference else 1
    states = 12.0 * trained
    if how.sharded != "none":
        states /= how.processes
    if how.sharded == "all":
        weights /= how.processes
    copied = how.precision == "bfloat16" and size == 4 and how.sharded != "all"
    copies = 2 * shape.weights * copied
    saved = shape.saved * (1 if how.checkpointing else shape.n_layers)
    saved += shape.n_layers * shape.hidden_size * how.checkpointing
    passes = rows * length * saved * BYTES[how.precision]
    working = max(passes, size * cached_tokens * shape.cached)
    return device.base + (weights + states + copies + working) / GIB
