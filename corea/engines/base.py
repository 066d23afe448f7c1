"""What all engines share: how completions are drawn, which, and what comes back."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from corea.checks import Floats, whole
from corea.confidence import expectation_on_grid
from corea.tasks.parsing import confidence_opening, parse_completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 10**9
"""Tokens above which a count is not believed: no context is that long, and sums fit 64 bits."""

LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can say and no file of UTF-8 can hold."""

_PLAIN_NUMBER = re.compile(r"[0-9.]+")


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token (the first of equals).
        max_completion_tokens: Length at which a completion is cut, from 1.
        n_samples: Completions of each prompt, from 1.
        seed: From 0.
        greedy_after: Text after which every token is the likeliest one, whatever the temperature:
            where a decision follows the reasoning, for instance. It counts where it stands in
            the completion, and at the end of the prompt but for white space. None when empty.
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
        for name, least in (("max_completion_tokens", 1), ("n_samples", 1), ("seed", 0)):
            object.__setattr__(self, name, whole(getattr(self, name), name, least))
        if self.temperature == 0 and self.n_samples > 1:
            raise ValueError(
                f"n_samples is {self.n_samples} at temperature 0, which gives the same completion "
                "each time; expected 1"
            )


class AwaitedText(dict[tuple[str, int], str]):
    """How much of a text has been written, token by token, in whatever tokens it comes.

    A state is the longest beginning of the text that what was written ends with, and all of it
    from then on. The mapping goes from a state and the next token to the state after it.

    Example:
        >>> from corea.tasks.microworld import build_tokenizer
        >>> tokenizer = build_tokenizer()
        >>> awaited, states = AwaitedText(tokenizer, "+4:"), [""]
        >>> for token in tokenizer("3+4: 7")["input_ids"]:
        ...     states.append(awaited[states[-1], token])
        >>> states
        ['', '', '+', '+4', '+4:', '+4:']
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        """Wait for ``text``, which is not empty."""
        self.tokenizer, self.text = tokenizer, text

    def behind(self, prompt: str) -> str:
        """The state at the start of a completion: all, if the prompt ends with the text."""
        return self.text if prompt.rstrip().endswith(self.text) else ""

    def __missing__(self, place: tuple[str, int]) -> str:
        """Read a token behind a state for the first time."""
        state, token = place
        written = state if state == self.text else state + self.tokenizer.decode([token])
        begun = (self.text[:n] for n in range(len(self.text) - 1, 0, -1))
        self[place] = (
            self.text
            if self.text in written
            else next((part for part in begun if written.endswith(part)), "")
        )
        return self[place]


def awaited_text(tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> AwaitedText | None:
    """What is to be waited for: nothing where all tokens are the likeliest anyway."""
    waits = sampling.greedy_after and sampling.temperature
    return _awaited(tokenizer, sampling.greedy_after) if waits else None


_awaited = lru_cache(maxsize=8)(AwaitedText)  # training makes an engine a rollout


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
        """Number of sampled tokens, the closing one included."""
        return self.n_tokens if self.token_ids is None else len(self.token_ids)

    @property
    def ids(self) -> list[int]:
        """The token ids as a list; an engine that only counts tokens has none."""
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
        """Complete each prompt ``sampling.n_samples`` times; all in the order of the prompts.

        A prompt that is given twice gets further samples, not the same again. ``samples`` are the
        numbers of those wanted of each prompt (None: all), ``confidence_grid`` the candidates for
        :attr:`Rollout.expected_confidence`. A rollout that could not be had has an ``error``; a
        ValueError tells what the engine cannot give, a FloatingPointError a distribution that is
        not finite.
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
        """Whether each prompt is wrapped in the chat template as a user message."""
        ...

    def plain(self) -> OpenEngine:
        """The same engine for prompts that stand in the chat template already."""
        ...

    def next_logprobs(
        self, rows: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Log-probabilities (n, K) of K tokens after each of n rows, and the likeliest tokens."""
        ...


def expectation_of_stated(
    prompts: Sequence[str],
    completions: Sequence[str],
    grid: Sequence[str],
    score: Callable[[Sequence[str], Sequence[str], Sequence[str]], Floats],
) -> tuple[Floats, Floats]:
    r"""Expected verbalized confidence: the mean of what the model might have stated.

    .. math:: \mathbb{E}[c] = \frac{\sum_k v_k \, p(k\} \mid x, y)}{\sum_k p(k\} \mid x, y)}

    where :math:`x` is the prompt, :math:`y` the completion up to the brace after
    ``\confidence``, and :math:`k` a text of the grid, which says the number :math:`v_k`.

    Source: ours; choices 3 and 4 of :mod:`corea.confidence`.

    Args:
        prompts: What was asked, length n.
        completions: What was answered, without special tokens, length n.
        grid: Texts the model might state, all different, each readable as a confidence.
        score: Log-probabilities (n, K) of K candidates after n prompts and openings.

    Returns:
        The expected confidences in [0, 1] and the probabilities the grid covers in [0, 1], each
        of shape (n,); both NaN where no confidence is stated.

    Raises:
        ValueError: If the lengths differ, a prompt is empty, or a text of the grid says no
            confidence or is there twice.
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


def wanted_samples(
    prompts: Sequence[Hashable], sampling: Sampling, samples: Sequence[Sequence[int]] | None
) -> list[tuple[int, int]]:
    """Each completion to draw: index of its prompt, and the number that decides its randomness.

    The numbers of a prompt that is given twice go on where those of the first end.

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


def request_seed(prompt: str, number: int, sampling: Sampling) -> int:
    """A seed of 31 bits for one sample of a prompt."""
    named = json.dumps([sampling.seed, number, prompt]).encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=4).digest(), "big") >> 1


def require_rows(rows: Sequence[Sequence[int]]) -> None:
    """Refuse texts without tokens."""
    for i, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"rows[{i}] is empty; expected ids")


def require_room(
    positions: int | None, prompts: Sequence[Sequence[int]], max_completion_tokens: int
) -> None:
    """Refuse encoded prompts whose completions may need more positions than the model has."""
    for i, prompt in enumerate(prompts):
        if positions is not None and len(prompt) + max_completion_tokens > positions:
            raise ValueError(
                f"prompts[{i}] has {len(prompt)} tokens; with max_completion_tokens = "
                f"{max_completion_tokens} that is more than the model's {positions} positions"
            )
