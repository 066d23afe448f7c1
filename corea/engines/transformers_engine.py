r"""Generation with a model of transformers, and scoring of what it might have written.

What is decided here:

1. Log-probabilities are the model's own, at temperature 1, whatever temperature the tokens were
   sampled at. They come from the logits that sampling computes anyway. A second, teacher-forced
   pass took 60 % of the time of generation itself (one core, a model of 0.35 M parameters).
2. Sampling is from the whole distribution: the ``top_k``, ``top_p`` and penalties that a model's
   own generation config may ask for are not used.
3. A token is drawn by inverting the cumulative distribution at a uniform number. The numbers
   come from the seed, the tokens of the prompt and the number of the sample, so neither the
   order of the prompts nor the batch size decides them, and no global random state is used or
   changed. The same call gives the same rollouts; another batch size or other prompts beside it
   round differently, which in rare cases changes a token and then all that follows it.
4. The decoding loop is our own, not ``model.generate``, for two reasons: rows that have ended are
   taken out of the batch (``generate`` computes them until the last has ended), and ``generate``
   draws from torch's global random state.
5. The pooled state is the mean of the last-layer states, the ones the output layer reads, from
   which the completion's tokens were predicted: T states for T tokens. (The states *at* the
   tokens are the same but for one: that of the last prompt token instead of the closing token's,
   which generation never computes.) No second pass is needed.
6. The output layer is computed in float32 whatever the weights are kept in: logits in bfloat16
   have steps of 1/8 from 16 on, so that tokens tie which the model tells apart. For the 152,000
   tokens of Qwen at 64 rows and width 896 that took 0.16 s of a core in place of 0.10.
7. Prompts are encoded as the tokenizer does it by default, with the special tokens it adds;
   those of a chat model stand in its chat template, as the one message of a user.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from corea.checks import Floats, whole
from corea.confidence import CONFIDENCE_GRID
from corea.engines.base import (
    AwaitedText,
    Rollout,
    Sampling,
    awaited_text,
    expectation_of_stated,
    require_room,
    require_rows,
    wanted_samples,
)
from corea.engines.loading import end_ids, load_model, resolved_precision
from corea.engines.prompts import chat_prompt, encode_candidates, encode_prompts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DROP_AT = 0.8  # rows that ended are taken out once this share or less is still being written


@dataclass(frozen=True, eq=False)
class TransformersEngine:
    """Generates with a model of transformers, wherever it is."""

    model: PreTrainedModel  # a causal one, not wrapped for several devices
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 64  # rows that the model works on at once
    chat: bool = False  # whether prompts are wrapped in the chat template as a user's message

    def __post_init__(self) -> None:
        """Check the values."""
        whole(self.batch_size, "batch_size", 1)
        if self.chat and not self.tokenizer.chat_template:
            raise ValueError("chat is True, but the tokenizer has no chat template")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over a sample of every weight tensor and the settings that decide prompts."""
        digest = hashlib.sha256()
        for name, weights in self.model.named_parameters():
            flat = weights.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)].float().cpu().numpy()
            digest.update(f"{name} {tuple(weights.shape)} {weights.dtype}".encode())
            digest.update(sample.tobytes())
        digest.update(f"{len(self.tokenizer)} {self.chat}".encode())
        return digest.hexdigest()

    @property
    def parts_at_once(self) -> int:
        """One: a model works on one batch at a time."""
        return 1

    @property
    def gives_expected_confidence(self) -> bool:
        """Yes: it scores any text."""
        return True

    def plain(self) -> TransformersEngine:
        """The same model for prompts that stand in the chat template already."""
        return replace(self, chat=False)

    def next_logprobs(
        self, rows: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> tuple[Floats, NDArray[np.int64]]:
        """As :func:`next_logprobs`, with this model and batch size."""
        return next_logprobs(self.model, rows, tokens, batch_size=self.batch_size)

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        pooled_states: bool = False,
        confidence_grid: Sequence[str] = (),
        samples: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Rollout]]:
        """As :meth:`corea.engines.base.Engine.generate`.

        Batches hold prompts of about the same length, longest first, padded on the left. The
        model is in evaluation mode meanwhile, and then in the mode it was in.
        """
        if self.chat:
            prompts = [chat_prompt(self.tokenizer, prompt) for prompt in prompts]
        encoded = encode_prompts(self.tokenizer, prompts)
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        require_room(positions, encoded, sampling.max_completion_tokens)
        wanted = wanted_samples([tuple(ids) for ids in encoded], sampling, samples)
        asked, numbers = [i for i, _ in wanted], [number for _, number in wanted]
        awaited = awaited_text(self.tokenizer, sampling)
        rollouts: list[Rollout | None] = [None] * len(asked)
        for batch in _batches([len(encoded[i]) for i in asked], self.batch_size):
            decoded = _decode(
                self.model,
                [encoded[asked[r]] for r in batch],
                np.stack([_uniforms(encoded[asked[r]], numbers[r], sampling) for r in batch]),
                sampling.temperature,
                end_ids(self.model.generation_config, self.tokenizer),
                pooled_states,
                awaited,
                [awaited.behind(prompts[asked[r]]) for r in batch] if awaited is not None else [],
            )
            ids = [row[:length] for row, length in zip(decoded.ids, decoded.lengths, strict=True)]
            texts = self.tokenizer.batch_decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for k, r in enumerate(batch):
                rollouts[r] = Rollout(
                    completion=texts[k],
                    token_ids=ids[k],
                    logprobs=decoded.logprobs[k, : len(ids[k])],
                    finished=bool(decoded.finished[k]),
                    prompt_tokens=len(encoded[asked[r]]),
                    pooled_state=decoded.pooled[k] if pooled_states else None,
                )
        made = [rollout for rollout in rollouts if rollout is not None]
        if confidence_grid:
            expected, mass = expected_confidence(
                self.model,
                self.tokenizer,
                [prompts[i] for i in asked],
                [rollout.completion for rollout in made],
                grid=confidence_grid,
                batch_size=self.batch_size,
            )
            made = [
                replace(rollout, expected_confidence=float(e), expected_mass=float(m))
                for rollout, e, m in zip(made, expected, mass, strict=True)
            ]
        answers: list[list[Rollout]] = [[] for _ in prompts]
        for i, rollout in zip(asked, made, strict=True):
            answers[i].append(rollout)
        return answers


def expected_confidence(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    grid: Sequence[str] = CONFIDENCE_GRID,
    batch_size: int = 64,
) -> tuple[Floats, Floats]:
    """As :func:`corea.engines.base.expectation_of_stated`, with a model of transformers."""
    score = partial(candidate_logprobs, model, tokenizer, batch_size=batch_size)
    return expectation_of_stated(prompts, completions, grid, score)


def candidate_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    openings: Sequence[str],
    candidates: Sequence[str],
    *,
    batch_size: int = 64,
) -> Floats:
    r"""Log-probability with which a model goes on with each of a few texts.

    The tokens that an opening has in common with all its continuations are computed once; then
    each continuation is read by the model behind them (teacher forcing), at temperature 1.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: What was asked, length n.
        openings: How the completions begin, length n; may be empty.
        candidates: How they might go on, K texts, all different.
        batch_size: Rows the model works on at once; each candidate is one.

    Returns:
        Natural log-probabilities, at most 0, shape (n, K). Where the tokenizer merges the end of
        an opening with a candidate, that of the merged token.
    """
    whole(batch_size, "batch_size", 1)
    prefixes, suffixes = encode_candidates(tokenizer, prompts, openings, candidates)
    n_candidates = len(candidates)
    scores = np.empty((len(prompts), n_candidates))
    lengths = [len(prefix) for prefix in prefixes]
    for batch in _batches(lengths, max(1, batch_size // n_candidates)):
        scores[batch] = _score(model, [prefixes[i] for i in batch], [suffixes[i] for i in batch])
    if np.isnan(scores).any():
        raise FloatingPointError("the model gives log-probabilities that are not numbers")
    return scores


def next_logprobs(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    tokens: Sequence[int],
    *,
    batch_size: int = 64,
) -> tuple[Floats, NDArray[np.int64]]:
    """Log-probabilities (n, K) of K tokens behind each of n rows, and the likeliest of all tokens.

    They are natural, over the full vocabulary at temperature 1, from one forward pass.
    """
    import torch

    whole(batch_size, "batch_size", 1)
    require_rows(rows)
    scores, likeliest = np.empty((len(rows), len(tokens))), np.empty(len(rows), dtype=np.int64)
    with _evaluating(model):
        wanted = torch.tensor(list(tokens), device=model.device)
        for batch in _batches([len(row) for row in rows], batch_size):
            ids, mask, positions = _left_padded([rows[i] for i in batch], model.device)
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
                logits_to_keep=1,
            )
            log_p = output.logits[:, -1].float().log_softmax(dim=-1)
            scores[batch] = log_p[:, wanted].double().cpu().numpy()
            likeliest[batch] = log_p.argmax(dim=-1).cpu().numpy()
    if np.isnan(scores).any():
        raise FloatingPointError("the model gives log-probabilities that are not numbers")
    return scores, likeliest


def open_model(
    path: str | Path, *, batch_size: int = 64, precision: str = ""
) -> TransformersEngine:
    """The engine for a model, which wraps prompts in its chat template where it has one.

    ``precision`` is ``"float32"``, ``"bfloat16"`` or ``"auto"``, which of them is fast here; when
    empty, that of the weights' files.
    """
    model, tokenizer = load_model(path, dtype=resolved_precision(precision) or "auto")
    return TransformersEngine(model, tokenizer, batch_size, chat=bool(tokenizer.chat_template))


# --- decoding -----------------------------------------------------------------------------------


class _Decoded(NamedTuple):
    """A batch of completions, padded on the right."""

    ids: NDArray[np.int64]  # (n, T)
    logprobs: NDArray[np.float32]  # (n, T)
    lengths: NDArray[np.int64]  # (n,)
    finished: NDArray[np.bool_]  # (n,)
    pooled: NDArray[np.float32]  # (n, d)


def _decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    uniforms: Floats,
    temperature: float,
    ends: Sequence[int],
    pooled_states: bool,
    awaited: AwaitedText | None = None,
    written: Sequence[str] = (),
) -> _Decoded:
    """Complete a batch of prompts with a token for each uniform number, at most.

    All tokens behind an awaited text are the likeliest; ``written`` is its state of each prompt.
    """
    import torch
    from transformers import DynamicCache

    n, limit = uniforms.shape
    device = model.device
    tokens, mask, positions = _left_padded(prompts, device)
    mask = torch.cat([mask, mask.new_ones(n, limit)], dim=1)
    uniform = torch.as_tensor(uniforms, device=device)
    end_ids = torch.tensor(ends, device=device)
    cache = DynamicCache(config=model.config)

    ids = torch.zeros(n, limit, dtype=torch.long, device=device)
    logprobs = torch.zeros(n, limit, device=device)
    lengths = torch.zeros(n, dtype=torch.long, device=device)
    finished = torch.zeros(n, dtype=torch.bool, device=device)
    pooled: torch.Tensor | None = None
    rows = torch.arange(n, device=device)  # still in the batch
    writing = torch.ones(n, dtype=torch.bool, device=device)  # of these, not yet ended

    with _evaluating(model), _last_states(model) as states:
        width = tokens.shape[1]
        for step in range(limit):
            output = model(
                input_ids=tokens,
                attention_mask=mask[:, : width + step],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            log_p = output.logits[:, -1].float().log_softmax(dim=-1)  # (rows, vocabulary)
            chosen = _draw(log_p, temperature, uniform[rows, step])
            if awaited is not None:
                if awaited.text in written:
                    due = torch.tensor([state == awaited.text for state in written], device=device)
                    chosen = torch.where(due, log_p.argmax(dim=-1), chosen)
                written = [awaited[place] for place in zip(written, chosen.tolist(), strict=True)]
            ids[rows, step] = chosen
            logprobs[rows, step] = log_p.gather(1, chosen[:, None])[:, 0]
            lengths[rows] += writing
            if pooled_states:
                state = states[0][:, -1].float()
                pooled = state.new_zeros(n, state.shape[1]) if pooled is None else pooled
                pooled[rows] += state * writing[:, None]
            ended = writing & torch.isin(chosen, end_ids)
            finished[rows] |= ended
            writing = writing & ~ended
            n_writing = int(writing.sum())
            if n_writing == 0:
                break
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            if n_writing <= _DROP_AT * len(rows):
                kept = writing.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                rows, writing, mask = rows[kept], writing[kept], mask[kept]
                tokens, positions = tokens[kept], positions[kept]
                written = [written[k] for k in kept.tolist()] if awaited is not None else []

    made = _Decoded(
        ids.cpu().numpy(),
        logprobs.cpu().numpy(),
        lengths.cpu().numpy(),
        finished.cpu().numpy(),
        np.empty(0, np.float32) if pooled is None else (pooled / lengths[:, None]).cpu().numpy(),
    )
    if not np.isfinite(made.logprobs).all():
        raise FloatingPointError("the model gives probabilities that are not finite numbers")
    return made


def _draw(log_p: torch.Tensor, temperature: float, uniform: torch.Tensor) -> torch.Tensor:
    """A token of each row: log-probabilities (n, V) and numbers in [0, 1) (n,) to ids (n,)."""
    import torch

    if temperature == 0:
        return log_p.argmax(dim=-1)
    scaled = log_p if temperature == 1 else (log_p / temperature).log_softmax(dim=-1)
    cumulative = scaled.exp().double().cumsum(dim=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    # right: the first token whose cumulative probability exceeds the target, never one of none
    drawn = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return drawn.clamp(max=log_p.shape[-1] - 1)


def _score(
    model: Any,
    prefixes: Sequence[Sequence[int]],
    suffixes: Sequence[Sequence[Sequence[int]]],
) -> Floats:
    """Log-probability of each suffix (n, K lists of ids) after its prefix (n lists), (n, K)."""
    import torch
    from transformers import DynamicCache

    device = model.device
    n, n_candidates = len(prefixes), len(suffixes[0])
    tokens, mask, positions = _left_padded(prefixes, device)
    flat = [suffix for row in suffixes for suffix in row]
    longest = max(map(len, flat))
    padded = torch.zeros(len(flat), longest, dtype=torch.long)
    real = torch.zeros(len(flat), longest, dtype=torch.bool)
    for i, suffix in enumerate(flat):
        padded[i, : len(suffix)] = torch.tensor(suffix)
        real[i, : len(suffix)] = True
    padded, real = padded.to(device), real.to(device)
    cache = DynamicCache(config=model.config)
    with _evaluating(model):
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        first = output.logits[:, -1].float().log_softmax(dim=-1)
        scores = first.gather(1, padded[:, 0].view(n, n_candidates))
        if longest > 1:
            cache.batch_repeat_interleave(n_candidates)
            steps = torch.arange(1, longest, device=device)
            output = model(
                input_ids=padded[:, :-1],
                attention_mask=torch.cat(
                    [mask.repeat_interleave(n_candidates, dim=0), real[:, :-1].to(mask.dtype)],
                    dim=1,
                ),
                position_ids=positions[:, -1:].repeat_interleave(n_candidates, dim=0) + steps,
                past_key_values=cache,
                use_cache=True,
            )
            rest = output.logits.float().log_softmax(dim=-1).gather(2, padded[:, 1:, None])[..., 0]
            scores = scores + (rest * real[:, 1:]).sum(dim=1).view(n, n_candidates)
    in_order: Floats = scores.double().cpu().numpy()
    return in_order


def _left_padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask (1 where there is a token) and positions of rows of ids, each (n, longest)."""
    import torch

    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return ids.to(device), mask.to(device), positions.to(device)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients, logits in float32; afterwards all is as it was."""
    import torch

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode(), _exact_logits(model):
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _exact_logits(model: Any) -> Iterator[None]:
    """An output layer that is computed in float32 (choice 6)."""
    import torch

    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):  # one of an adapter's
        yield
        return
    weight = layer.weight.float()
    bias = None if layer.bias is None else layer.bias.float()

    halves = layer.weight.dtype == torch.bfloat16
    products = torch.backends.mkldnn.matmul  # of a CPU

    def forward(states: torch.Tensor) -> torch.Tensor:
        before = products.fp32_precision
        if halves and states.dtype == torch.bfloat16:
            products.fp32_precision = (
                "bf16"  # loses nothing of such numbers, in a third of the time
            )
        try:
            with torch.autocast(states.device.type, enabled=False):
                return torch.nn.functional.linear(states.float(), weight, bias)
        finally:
            products.fp32_precision = before

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def _last_states(model: Any) -> Iterator[list[torch.Tensor]]:
    """A list whose one element is always what the output layer read last, (n, 1, d)."""
    latest: list[torch.Tensor] = []

    def keep(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        latest[:] = inputs[:1]

    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield latest
    finally:
        hook.remove()


def _uniforms(prompt: Sequence[int], number: int, sampling: Sampling) -> Floats:
    """Numbers in [0, 1) that decide a completion, one a token."""
    named = json.dumps([sampling.seed, number, list(prompt)]).encode()
    key = int.from_bytes(hashlib.blake2b(named, digest_size=16).digest(), "big")
    uniforms: Floats = np.random.Generator(np.random.Philox(key=key)).random(
        sampling.max_completion_tokens
    )
    return uniforms


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches, the longest first, so that memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]
