r"""Generation: prompts in, rollouts out; and scoring of what a model might have written.

:class:`Engine` is all that an evaluation knows of a model. :class:`TransformersEngine` is the
one for models of transformers, on a CPU or GPU. What is decided here:

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
6. Prompts are encoded as the tokenizer does it by default, with the special tokens it adds;
   those of a chat model stand in its chat template, as the one message of a user. Candidate
   texts are encoded together with the text before them, as the tokenizer would, whatever it
   merges.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from corea.confidence import CONFIDENCE_GRID, expectation_on_grid
from corea.engines.models import chat_prompt, encode, encode_prompts, end_ids, load_model
from corea.tasks.parsing import confidence_opening, parse_completion

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 10**9
"""Tokens above which a count is not believed: no context is that long, and sums fit 64 bits."""

LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can say and no file of UTF-8 can hold."""

_Floats = NDArray[np.float64]

_PLAIN_NUMBER = re.compile(r"[0-9.]+")
_DROP_AT = 0.8  # rows that ended are taken out once this share or less is still being written


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token (the first of equals).
        max_completion_tokens: Length at which a completion is cut, from 1.
        n_samples: Completions of each prompt, from 1.
        seed: From 0.
        greedy_after: Text after which the next token is the likeliest one, whatever the
            temperature: where a decision follows the reasoning, for instance. None when empty.
    """

    temperature: float = 0.6
    max_completion_tokens: int = 1024
    n_samples: int = 1
    seed: int = 0
    greedy_after: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        number = isinstance(self.temperature, int | float) and not isinstance(
            self.temperature, bool
        )
        if not (number and np.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature!r}; expected a number from 0")
        require_whole("max_completion_tokens", self.max_completion_tokens, 1)
        require_whole("n_samples", self.n_samples, 1)
        require_whole("seed", self.seed, 0)
        if self.temperature == 0 and self.n_samples > 1:
            raise ValueError(
                f"n_samples is {self.n_samples} at temperature 0, which gives the same completion "
                "each time; expected 1"
            )


@dataclass(frozen=True, eq=False)
class Rollout:
    """One completion and what the model computed for it.

    Attributes:
        completion: The text, without special tokens.
        token_ids: All tokens sampled, the closing one too, shape (T,), T from 1; None where the
            engine only counts them.
        logprobs: Their natural log-probabilities at temperature 1, shape (T,); None where the
            engine has none.
        finished: Whether the model ended it; otherwise it was cut.
        prompt_tokens: Tokens of the prompt.
        pooled_state: Mean last-layer state, shape (d,), where asked for.
        expected_confidence: In [0, 1], NaN where no confidence is stated; None if not asked for.
        expected_mass: Probability of the candidates it was computed from; likewise.
        n_tokens: How many tokens were sampled, where there are no ``token_ids``.
        error: Why there is no completion; empty where there is one.
    """

    completion: str
    token_ids: NDArray[np.int64] | None
    logprobs: NDArray[np.float32] | None
    finished: bool
    prompt_tokens: int
    pooled_state: NDArray[np.float32] | None = None
    expected_confidence: float | None = None
    expected_mass: float | None = None
    n_tokens: int = 0
    error: str = ""

    @property
    def completion_tokens(self) -> int:
        """Tokens sampled, the closing one too."""
        return self.n_tokens if self.token_ids is None else len(self.token_ids)

    @property
    def ids(self) -> list[int]:
        """The tokens, as whole numbers.

        Raises:
            ValueError: If the engine only counts them.
        """
        if self.token_ids is None:
            raise ValueError("the engine gives no tokens, only their number")
        tokens: list[int] = self.token_ids.tolist()
        return tokens


class Engine(Protocol):
    """What answers prompts: a model in this process, or a server."""

    @property
    def fingerprint(self) -> str:
        """Identifies the weights, so that results of others are not taken for theirs."""
        ...

    @property
    def batch_size(self) -> int:
        """Completions it works on at once."""
        ...

    @property
    def parts_at_once(self) -> int:
        """How many calls of :meth:`generate` may be made at once, by several threads."""
        ...

    @property
    def gives_expected_confidence(self) -> bool:
        """Whether :meth:`generate` takes a ``confidence_grid``."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        pooled_states: bool = False,
        confidence_grid: Sequence[str] = (),
        samples: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Rollout]]:
        """Complete each prompt ``sampling.n_samples`` times.

        Args:
            prompts: Texts, length n.
            sampling: How.
            pooled_states: Whether :attr:`Rollout.pooled_state` is wanted.
            confidence_grid: Candidates for :attr:`Rollout.expected_confidence`; none: not wanted.
            samples: Numbers of the samples wanted of each prompt; all when None.

        Returns:
            The rollouts of each prompt, in the order of the prompts. One that could not be had
            has an ``error``.

        Raises:
            ValueError: If something is asked for that the engine cannot give.
        """
        ...


class OpenEngine(Engine, Protocol):
    """An engine whose model can be looked into: what decisions need beyond answers."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        ...

    @property
    def chat(self) -> bool | None:
        """Whether a prompt is what a user says (:func:`corea.engines.models.chat_prompt`)."""
        ...

    def plain(self) -> OpenEngine:
        """The same engine for prompts that stand in the chat template already."""
        ...

    def next_logprobs(
        self, rows: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> tuple[_Floats, NDArray[np.int64]]:
        """As :func:`next_logprobs`, with the engine's model."""
        ...


@dataclass(frozen=True, eq=False)
class TransformersEngine:
    """Generates with a model of transformers, wherever it is.

    Attributes:
        model: A causal language model, not wrapped for several devices.
        tokenizer: Its tokenizer.
        batch_size: Rows the model works on at once, from 1.
        chat: Whether a prompt is what a user says (:func:`chat_prompt`).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 64
    chat: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        require_whole("batch_size", self.batch_size, 1)
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
    ) -> tuple[_Floats, NDArray[np.int64]]:
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
        """Complete each prompt ``sampling.n_samples`` times.

        Batches hold prompts of about the same length, longest first, padded on the left. The
        model is in evaluation mode meanwhile, and then in the mode it was in. A prompt that is
        given twice gets further samples, not the same again.

        Args:
            prompts: Texts, length n.
            sampling: How.
            pooled_states: Whether :attr:`Rollout.pooled_state` is wanted.
            confidence_grid: Candidates for :attr:`Rollout.expected_confidence`; none: not wanted.
            samples: Numbers of the samples wanted of each prompt; all when None.

        Returns:
            The rollouts of each prompt, in the order of the prompts.

        Raises:
            ValueError: If a prompt is empty or leaves no room for a completion; names it.
            FloatingPointError: If the model gives a distribution that is not finite.
        """
        if self.chat:
            prompts = [chat_prompt(self.tokenizer, prompt) for prompt in prompts]
        encoded = encode_prompts(self.tokenizer, prompts)
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        require_room(positions, encoded, sampling.max_completion_tokens)
        wanted = wanted_samples([tuple(ids) for ids in encoded], sampling, samples)
        asked, numbers = [i for i, _ in wanted], [number for _, number in wanted]
        rollouts: list[Rollout | None] = [None] * len(asked)
        for batch in _batches([len(encoded[i]) for i in asked], self.batch_size):
            decoded = _decode(
                self.model,
                [encoded[asked[r]] for r in batch],
                np.stack([_uniforms(encoded[asked[r]], numbers[r], sampling) for r in batch]),
                sampling.temperature,
                end_ids(self.model.generation_config, self.tokenizer),
                pooled_states,
                encode(self.tokenizer, [sampling.greedy_after])[0],
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
) -> tuple[_Floats, _Floats]:
    r"""Expected verbalized confidence: the mean of what the model might have stated.

    .. math:: \mathbb{E}[c] = \frac{\sum_k v_k \, p(k\} \mid x, y)}{\sum_k p(k\} \mid x, y)}

    where :math:`x` is the prompt, :math:`y` the completion up to the brace after
    ``\confidence``, and :math:`k` a text of the grid, which says the number :math:`v_k`.

    Source: ours; choices 3 and 4 of :mod:`corea.confidence`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: What was asked, length n.
        completions: What was answered, without special tokens, length n.
        grid: Texts the model might state, all different, each readable as a confidence.
        batch_size: Rows the model works on at once.

    Returns:
        The expected confidences in [0, 1] and the probabilities the grid covers in [0, 1], each
        of shape (n,); both NaN where no confidence is stated.

    Raises:
        ValueError: If the lengths differ, a prompt is empty, or a text of the grid says no
            confidence or is there twice.
    """
    score = partial(candidate_logprobs, model, tokenizer, batch_size=batch_size)
    return expectation_of_stated(prompts, completions, grid, score)


def expectation_of_stated(
    prompts: Sequence[str],
    completions: Sequence[str],
    grid: Sequence[str],
    score: Callable[[Sequence[str], Sequence[str], Sequence[str]], _Floats],
) -> tuple[_Floats, _Floats]:
    """:func:`expected_confidence` by whatever gives the log-probabilities.

    Args:
        prompts: What was asked, length n.
        completions: What was answered, without special tokens, length n.
        grid: Texts the model might state, all different, each readable as a confidence.
        score: Log-probabilities of prompts, openings and candidates, as
            :func:`candidate_logprobs` gives them.

    Returns:
        As :func:`expected_confidence`.

    Raises:
        ValueError: As :func:`expected_confidence` does.
    """
    values = []
    for text in grid:
        value = parse_completion(rf"\confidence{{{text}}}").confidence
        if value is None or not _PLAIN_NUMBER.fullmatch(text):
            raise ValueError(f"grid has {text!r}; expected the text of a number in [0, 1]")
        values.append(value)
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts for {len(completions)} completions")
    openings = [confidence_opening(text) for text in completions]
    stated = [i for i, opening in enumerate(openings) if opening is not None]
    logprobs = np.full((len(prompts), len(values)), np.nan)
    if stated:
        logprobs[stated] = score(
            [prompts[i] for i in stated],
            [opening for opening in openings if opening is not None],
            [text + "}" for text in grid],
        )
    return expectation_on_grid(logprobs, values)


def candidate_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    openings: Sequence[str],
    candidates: Sequence[str],
    *,
    batch_size: int = 64,
) -> _Floats:
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

    Raises:
        ValueError: If the lengths differ, a prompt is empty, or a candidate is empty or there
            twice.
        FloatingPointError: If the model gives a distribution that is not finite.
    """
    require_whole("batch_size", batch_size, 1)
    prefixes, suffixes = encode_candidates(tokenizer, prompts, openings, candidates)
    n_candidates = len(candidates)
    scores = np.empty((len(prompts), n_candidates))
    lengths = [len(prefix) for prefix in prefixes]
    for batch in _batches(lengths, max(1, batch_size // n_candidates)):
        scores[batch] = _score(model, [prefixes[i] for i in batch], [suffixes[i] for i in batch])
    if np.isnan(scores).any():
        raise FloatingPointError("the model gives log-probabilities that are not numbers")
    return scores


def encode_candidates(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    openings: Sequence[str],
    candidates: Sequence[str],
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The tokens that stand before each of a few texts, and the texts' own.

    Args:
        tokenizer: The model's.
        prompts: What was asked, length n.
        openings: How the completions begin, length n; may be empty.
        candidates: How they might go on, K texts, all different.

    Returns:
        The ids that an opening has in common with all its continuations, behind those of the
        prompt; and how each continuation goes on, K lists of ids of each prompt.

    Raises:
        ValueError: If the lengths differ, a prompt is empty, or a candidate is empty or there
            twice.
    """
    if len(prompts) != len(openings):
        raise ValueError(f"{len(prompts)} prompts for {len(openings)} openings")
    if not candidates or not all(candidates) or len(set(candidates)) != len(candidates):
        raise ValueError(f"candidates are {list(candidates)}; expected texts, all different")
    encoded = encode_prompts(tokenizer, prompts)
    shared, suffixes = _continuations(tokenizer, openings, candidates)
    return [prompt + ids for prompt, ids in zip(encoded, shared, strict=True)], suffixes


def next_logprobs(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    tokens: Sequence[int],
    *,
    batch_size: int = 64,
) -> tuple[_Floats, NDArray[np.int64]]:
    """Log-probability of each of a few tokens behind each row, in one forward pass over the rows.

    Args:
        model: A causal language model.
        rows: Ids of each text, length n, none empty.
        tokens: Ids of the K tokens.
        batch_size: Rows the model works on at once.

    Returns:
        Natural log-probabilities over the full vocabulary at temperature 1, shape (n, K), and
        the likeliest of all tokens, shape (n,).

    Raises:
        ValueError: If a row is empty.
        FloatingPointError: If the model gives a distribution that is not finite.
    """
    import torch

    require_whole("batch_size", batch_size, 1)
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
            own = output.logits[:, -1].float().log_softmax(dim=-1)
            scores[batch] = own[:, wanted].double().cpu().numpy()
            likeliest[batch] = own.argmax(dim=-1).cpu().numpy()
    if np.isnan(scores).any():
        raise FloatingPointError("the model gives log-probabilities that are not numbers")
    return scores, likeliest


def open_model(path: str | Path, *, batch_size: int = 64) -> TransformersEngine:
    """The engine for a model, which gets prompts in its chat template where it has one.

    Args:
        path: As for :func:`load_model`.
        batch_size: Rows the model works on at once.

    Returns:
        The engine.

    Raises:
        ModelError: As :func:`load_model` does.
    """
    model, tokenizer = load_model(path)
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
    uniforms: _Floats,
    temperature: float,
    ends: Sequence[int],
    pooled_states: bool,
    greedy_after: Sequence[int] = (),
) -> _Decoded:
    """Complete a batch of prompts with a token for each uniform number, at most.

    The token after those of ``greedy_after``, at the end of a prompt too, is the likeliest.
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
    marker = torch.tensor(greedy_after, dtype=torch.long, device=device)
    recent = tokens.new_full((n, len(marker)), -1)  # the last tokens of each row
    reach = min(len(marker), tokens.shape[1])
    recent[:, len(marker) - reach :] = tokens[:, tokens.shape[1] - reach :]

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
            own = output.logits[:, -1].float().log_softmax(dim=-1)  # (rows, vocabulary)
            chosen = _draw(own, temperature, uniform[rows, step])
            if len(marker):
                due = (recent == marker).all(dim=1)
                chosen = torch.where(due, own.argmax(dim=-1), chosen)
                recent = torch.cat([recent[:, 1:], chosen[:, None]], dim=1)
            ids[rows, step] = chosen
            logprobs[rows, step] = own.gather(1, chosen[:, None])[:, 0]
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
                tokens, positions, recent = tokens[kept], positions[kept], recent[kept]

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


def _draw(own: torch.Tensor, temperature: float, uniform: torch.Tensor) -> torch.Tensor:
    """A token of each row: log-probabilities (n, V) and numbers in [0, 1) (n,) to ids (n,)."""
    import torch

    if temperature == 0:
        return own.argmax(dim=-1)
    scaled = own if temperature == 1 else (own / temperature).log_softmax(dim=-1)
    cumulative = scaled.exp().double().cumsum(dim=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    # right: the first token whose cumulative probability exceeds the target, never one of none
    drawn = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return drawn.clamp(max=own.shape[-1] - 1)


def _score(
    model: Any,
    prefixes: Sequence[Sequence[int]],
    suffixes: Sequence[Sequence[Sequence[int]]],
) -> _Floats:
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
    in_order: _Floats = scores.double().cpu().numpy()
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
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    import torch

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


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


# --- prompts and batches --------------------------------------------------------------------------


def _continuations(
    tokenizer: Any, openings: Sequence[str], candidates: Sequence[str]
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Encode each opening with each candidate: the ids all share, and how each goes on.

    To encode long texts once for each candidate would take longer than the model does. So only
    the end is, from the token on in which the opening ends. That this gives the ids of the whole
    text is checked with the first candidate, and with all of them whenever the end, or the token
    before it, is one not met before.
    """
    known: dict[str, list[int]] = {}  # many openings end alike
    checked: set[tuple[int, str]] = set()

    def encoded(text: str) -> list[int]:
        if text not in known:
            known[text] = encode(tokenizer, [text])[0]
        return known[text]

    whole = tokenizer(
        [opening + candidates[0] for opening in openings],
        add_special_tokens=False,
        return_offsets_mapping=tokenizer.is_fast,
    )
    shared, suffixes = [], []
    for i, opening in enumerate(openings):
        ids = whole["input_ids"][i]
        offsets = whole["offset_mapping"][i] if tokenizer.is_fast else []
        last = max(0, bisect_left(offsets, (len(opening), 0)) - 1)
        end = opening[offsets[last][0] :] if last else opening
        same = ids == ids[:last] + encoded(end + candidates[0])
        if same and last and (ids[last - 1], end) not in checked:
            all_ids = encode(tokenizer, [opening + candidate for candidate in candidates])
            tails = [encoded(end + candidate) for candidate in candidates]
            same = all_ids == [ids[:last] + tail for tail in tails]
            if same:
                checked.add((ids[last - 1], end))
        if not same:
            last, end = 0, opening
        tails = [encoded(end + candidate) for candidate in candidates]
        n = _n_shared([encoded(end), *tails])
        if any(len(tail) == n for tail in tails):
            raise ValueError(f"candidates are {list(candidates)}; one adds no token to the text")
        shared.append(ids[:last] + tails[0][:n])
        suffixes.append([tail[n:] for tail in tails])
    return shared, suffixes


def _n_shared(rows: Sequence[list[int]]) -> int:
    """How many ids all rows begin with."""
    low, high = min(rows), max(rows)  # all others lie between them
    differing = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return next(differing, min(len(low), len(high)))


def require_rows(rows: Sequence[Sequence[int]]) -> None:
    """Refuse texts without tokens.

    Args:
        rows: Ids of each.

    Raises:
        ValueError: If one is empty; names it.
    """
    for i, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"rows[{i}] is empty; expected ids")


def require_room(
    positions: int | None, prompts: Sequence[Sequence[int]], max_completion_tokens: int
) -> None:
    """Refuse prompts whose completions may outgrow a model.

    Args:
        positions: Tokens that the model has positions for; any number when None.
        prompts: Ids of each.
        max_completion_tokens: That may be written after each.

    Raises:
        ValueError: If one is too long; names it.
    """
    for i, prompt in enumerate(prompts):
        if positions is not None and len(prompt) + max_completion_tokens > positions:
            raise ValueError(
                f"prompts[{i}] has {len(prompt)} tokens; with max_completion_tokens = "
                f"{max_completion_tokens} that is more than the model's {positions} positions"
            )


def wanted_samples(
    prompts: Sequence[Hashable], sampling: Sampling, samples: Sequence[Sequence[int]] | None
) -> list[tuple[int, int]]:
    """What is to be asked: each prompt's place, and the number that decides its random numbers.

    Args:
        prompts: Texts, or their tokens.
        sampling: How.
        samples: Numbers of the samples wanted of each prompt, in [0, n_samples); all when None.

    Returns:
        A pair for each completion, prompt by prompt. The numbers of a prompt that is there twice
        go on where those of the first end.

    Raises:
        ValueError: If ``samples`` has another length, or a number that is not of a sample.

    Example:
        >>> wanted_samples(["a", "b", "a"], Sampling(n_samples=2), [[1], [], [0, 1]])
        [(0, 1), (2, 2), (2, 3)]
    """
    n = sampling.n_samples
    chosen = [range(n)] * len(prompts) if samples is None else samples
    if len(chosen) != len(prompts):
        raise ValueError(f"{len(chosen)} lists of samples for {len(prompts)} prompts")
    seen: Counter[Hashable] = Counter()
    wanted = []
    for i, (prompt, numbers) in enumerate(zip(prompts, chosen, strict=True)):
        if outside := [number for number in numbers if not 0 <= number < n]:
            raise ValueError(f"samples[{i}] has {outside[0]}; expected numbers from 0 to {n - 1}")
        wanted += [(i, seen[prompt] * n + number) for number in numbers]
        seen[prompt] += 1
    return wanted


def request_seed(prompt: str, number: int, sampling: Sampling, written: int = 0) -> int:
    """A seed for whatever draws a completion by random numbers of its own.

    Args:
        prompt: What is asked.
        number: Of the sample (:func:`wanted_samples`).
        sampling: How.
        written: Tokens of the completion that are there already.

    Returns:
        A whole number of 31 bits.
    """
    named = json.dumps([sampling.seed, number, prompt, *([written] if written else [])]).encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=4).digest(), "big") >> 1


def _uniforms(prompt: Sequence[int], number: int, sampling: Sampling) -> _Floats:
    """Numbers in [0, 1) that decide a completion, one a token."""
    named = json.dumps([sampling.seed, number, list(prompt)]).encode()
    key = int.from_bytes(hashlib.blake2b(named, digest_size=16).digest(), "big")
    uniforms: _Floats = np.random.Generator(np.random.Philox(key=key)).random(
        sampling.max_completion_tokens
    )
    return uniforms


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches, the longest first, so that memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def require_whole(name: str, value: object, lowest: int) -> None:
    """Refuse what is no whole number, or too small.

    Args:
        name: What it is called.
        value: Any.
        lowest: The smallest allowed.

    Raises:
        ValueError: If it is refused; names it.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise ValueError(f"{name} is {value!r}; expected a whole number from {lowest}")
