"""A cascade of two engines: the small model answers, and the large one where the card defers.

1. Both models are asked as the questions of the card were: the instruction stands behind the last
   message of the user, unless it is there already. How an answer and its confidence are read is
   :mod:`corea.tasks.parsing`'s and :func:`corea.engines.evaluation.signals_of`'s business, when to
   defer :func:`corea.metrics.cascade.defers`'s.
2. A small model that gives no confidence, or no answer, defers. A large model that gives no answer
   leaves the small model's, marked ``degraded``, or an error, as ``when_large_fails`` says. Where
   neither answers it is an error. Each of them has its reason in words.
3. Each model has its seconds, all attempts and waiting included. A model of this process that is
   out of time goes on in its thread, and what waits for it waits longer.
4. A streamed answer is the final one: the small model's comes at once, when its confidence is
   known; the large model's as it is written. If it breaks off then, that is an error, since what
   was said cannot be taken back.
5. Models of this process are asked for what waits together, up to their batch size. They take a
   single message of a user; servers take conversations.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal

from corea import checks
from corea.confidence import CONFIDENCE_GRID
from corea.engines.base import Engine, Rollout, Sampling, request_seed
from corea.engines.evaluation import kept, signals_of
from corea.metrics.cascade import defers, query_cost
from corea.tasks.parsing import parse_completion
from corea.tasks.questions import INSTRUCTION
from corea.thresholds.card import Card, CardError

Messages = Sequence[Mapping[str, str]]
"""A conversation as OpenAI has it: ``role`` and ``content`` of each message."""

SIGNALS = ("confidence", "average_probability", "expected_confidence")
"""What a card may read the confidence from: what an engine gives with an answer."""


class CascadeError(Exception):
    """No answer could be had; says why.

    Attributes:
        large: What came of asking the large model; None if it was not asked.
        large_seconds: How long that took.
    """

    def __init__(self, why: str, large: Rollout | None = None, large_seconds: float = 0.0) -> None:
        """Keep what is known."""
        super().__init__(why)
        self.large, self.large_seconds = large, large_seconds


@dataclass(frozen=True, eq=False)
class Decision:
    """What the small model said, and whether the large one is to be asked.

    Attributes:
        messages: What was asked, with the instruction.
        sampling: How completions are drawn.
        seed: Of this question.
        small: The small model's completion.
        answer: As read from it; None where there is none.
        scores: Each of :data:`SIGNALS`, in [0, 1] or NaN.
        confidence: That of the card's signal; None where missing.
        probability: Of the small model being right, as the card's recalibration has it, if any.
        deferred: Whether the question goes to the large model.
        reason: Why, in words.
        seconds: How long the small model took.
    """

    messages: Messages
    sampling: Sampling
    seed: int
    small: Rollout
    answer: str | None
    scores: Mapping[str, float]
    confidence: float | None
    probability: float | None
    deferred: bool
    reason: str
    seconds: float


@dataclass(frozen=True, eq=False)
class Answered:
    """A final answer, and how it came about.

    Attributes:
        text: The completion of the model that answered.
        answer: As read from it; None where there is none.
        finished: Whether the model ended it; otherwise it was cut.
        answered_by: Name of the system that answered.
        confidence: The small model's, in [0, 1]; None where missing.
        probability: Of the small model being right, if the card has a recalibration.
        deferred: Whether the card sent the question to the large model.
        degraded: Whether the small model answered because the large one did not.
        reason: Why this model answered, in words.
        tokens: Prompt and completion tokens of each system that answered at all.
        cost: Of both, in input tokens of the small model; None without a ``size_ratio``.
        decision: What the small model said.
        large: The large model's completion; None if it was not asked.
        large_seconds: How long the large model took.
    """

    text: str
    answer: str | None
    finished: bool
    answered_by: str
    confidence: float | None
    probability: float | None
    deferred: bool
    degraded: bool
    reason: str
    tokens: Mapping[str, tuple[int, int]]
    cost: float | None
    decision: Decision
    large: Rollout | None
    large_seconds: float


@dataclass(frozen=True, eq=False)
class Cascade:
    """Two engines behind a card; sync (:meth:`answer`), async, in batches, streamed.

    An engine is best given up by who made it, after :meth:`close`.

    Attributes:
        small: Answers first.
        large: Answers what is deferred.
        card: Which systems these are, the signal, and the threshold.
        sampling: How completions are drawn, unless a question says otherwise.
        instruction: Put behind the user's last message; nothing when empty.
        small_seconds: Within which the small model has to answer.
        large_seconds: Within which the large model has to answer.
        when_large_fails: ``"degrade"`` to the small model's answer, or an ``"error"``.
        size_ratio: Price of the large model's tokens over the small one's, for costs.
        output_price: Price of an output token in input tokens.

    Raises:
        CardError: If the card has no threshold, or a signal that the small engine does not give.
    """

    small: Engine
    large: Engine
    card: Card
    sampling: Sampling = field(default_factory=Sampling)
    instruction: str = INSTRUCTION
    small_seconds: float = 60.0
    large_seconds: float = 120.0
    when_large_fails: Literal["degrade", "error"] = "degrade"
    size_ratio: float | None = None
    output_price: float = 4.0

    def __post_init__(self) -> None:
        """Check what can be known before anything is asked."""
        self.card.usable()
        signal = self.card.signal
        if signal not in SIGNALS:
            raise CardError(
                f"the card reads the column {signal!r}, which is not known while a model answers; "
                f"expected one of {', '.join(SIGNALS)}"
            )
        lacks_grid = signal == "expected_confidence" and not self.small.gives_expected_confidence
        lacks_logprobs = signal == "average_probability" and not getattr(
            self.small, "logprobs", True
        )
        if lacks_grid or lacks_logprobs:
            raise CardError(f"the card reads the column {signal!r}, which the small engine lacks")
        checks.one_of(self.when_large_fails, "when_large_fails", ("degrade", "error"))
        if self.sampling.n_samples != 1:
            raise ValueError(f"n_samples is {self.sampling.n_samples}; expected 1, the answer")
        for name in ("small_seconds", "large_seconds"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected seconds above 0")
        if self.size_ratio is not None:
            query_cost(0, 0, self.size_ratio, self.output_price)

    @cached_property
    def _resources(self) -> ExitStack:
        return ExitStack()

    @cached_property
    def _portal(self) -> BlockingPortal:
        """An event loop in a thread of its own, for who calls without one."""
        return self._resources.enter_context(start_blocking_portal())

    @cached_property
    def _models(self) -> tuple[_Model, _Model]:
        grid = CONFIDENCE_GRID if self.card.signal == "expected_confidence" else ()
        return _Model(self.small, self.small_seconds, grid), _Model(self.large, self.large_seconds)

    def answer(self, prompt: str | Messages, sampling: Sampling | None = None) -> Answered:
        """Answer a question.

        Raises:
            CascadeError: If no answer could be had.
        """
        return self._portal.call(self.answer_async, prompt, sampling)

    def answer_all(
        self, prompts: Sequence[str | Messages], sampling: Sampling | None = None
    ) -> list[Answered | CascadeError]:
        """Answer many questions, as many at once as the engines take; in their order."""
        return self._portal.call(self._answer_all, prompts, sampling)

    def close(self) -> None:
        """Give up connections of the sync methods; the cascade is not to be used again."""
        if "_portal" in vars(self):
            self._portal.call(self.close_here)
            self._resources.close()

    async def close_here(self) -> None:
        """Give up the connections of the running event loop."""
        for engine in (self.small, self.large):
            if close := getattr(engine, "close_here", None):
                await close()

    async def answer_async(
        self, prompt: str | Messages, sampling: Sampling | None = None
    ) -> Answered:
        """As :meth:`answer`."""
        return await self.finish(await self.decide(prompt, sampling))

    async def stream(
        self, prompt: str | Messages, sampling: Sampling | None = None
    ) -> AsyncGenerator[str | Answered, None]:
        """The text of the final answer in parts, and in the end all about it (choice 4)."""
        async with aclosing(self.finish_streamed(await self.decide(prompt, sampling))) as parts:
            async for part in parts:
                yield part

    async def decide(
        self, prompt: str | Messages, sampling: Sampling | None = None, seed: int | None = None
    ) -> Decision:
        """Ask the small model alone. A seed makes the completion another or the same again."""
        messages = self._instructed(prompt)
        sampling = sampling or self.sampling
        if seed is None:
            seed = request_seed(messages[-1]["content"], 0, sampling)
        begun = time.perf_counter()
        rollout = await self._models[0].ask(messages, sampling, seed)
        seconds = time.perf_counter() - begun
        parsed = parse_completion(rollout.completion)
        scores = signals_of(rollout, parsed)
        score = scores[self.card.signal]
        if rollout.error:
            reason = f"{self.card.small} did not answer: {rollout.error}"
        elif np.isnan(score) and self.card.signal == "average_probability":
            reason = "no confidence: the answer came without log-probabilities"
        else:
            reason = self.card.reason(score)
        there, chance = not np.isnan(score), self.card.recalibration
        return Decision(
            messages=messages,
            sampling=sampling,
            seed=seed,
            small=rollout,
            answer=parsed.answer,
            scores=scores,
            confidence=score if there else None,
            probability=float(chance.apply([score])[0]) if chance and there else None,
            deferred=bool(rollout.error) or bool(defers([score], self.card.usable())[0]),
            reason=reason,
            seconds=seconds,
        )

    async def finish(self, decision: Decision) -> Answered:
        """The final answer behind a decision; raises as :meth:`answer`."""
        if not decision.deferred:
            return self._settled(decision, None, 0.0)
        large, seconds = await self.ask_large(decision)
        return self._settled(decision, large, seconds)

    async def finish_streamed(self, decision: Decision) -> AsyncGenerator[str | Answered, None]:
        """As :meth:`finish`, in parts."""
        large, seconds, said = None, 0.0, False
        if decision.deferred:
            begun = time.perf_counter()
            asked = (decision.messages, decision.sampling, decision.seed)
            async with aclosing(self._models[1].stream(*asked)) as parts:
                async for part in parts:
                    if isinstance(part, Rollout):
                        large = part
                    else:
                        said = True
                        yield part
            seconds = time.perf_counter() - begun
            if said and large is not None and large.error:
                raise CascadeError(f"{self.card.large} broke off: {large.error}", large, seconds)
        answered = self._settled(decision, large, seconds)
        if not said:
            yield answered.text
        yield answered

    async def ask_large(self, decision: Decision) -> tuple[Rollout, float]:
        """What the large model says to the same question, and the seconds it took."""
        begun = time.perf_counter()
        large = await self._models[1].ask(decision.messages, decision.sampling, decision.seed)
        return large, time.perf_counter() - begun

    def cost(self, rollout: Rollout, *, large: bool = False) -> float | None:
        """Cost of one completion, in input tokens of the small model; None if not known."""
        if self.size_ratio is None or rollout.error:
            return None
        ratio = self.size_ratio if large else 1.0
        tokens = (rollout.prompt_tokens, rollout.completion_tokens)
        return float(query_cost(*tokens, ratio, self.output_price))

    def _settled(self, decision: Decision, large: Rollout | None, seconds: float) -> Answered:
        """Who answers, by the policy."""
        small, reason = decision.small, decision.reason
        degraded = False
        if large is not None and large.error:
            degraded = True
            reason = f"{reason}; {self.card.large} did not answer: {large.error}"
            if small.error or self.when_large_fails == "error":
                raise CascadeError(reason, large, seconds)
        answering = small if large is None or degraded else large
        answered = [
            (name, r)
            for name, r in ((self.card.small, small), (self.card.large, large))
            if r and not r.error
        ]
        costs = [self.cost(r, large=r is large) for _, r in answered]
        return Answered(
            text=answering.completion,
            answer=parse_completion(answering.completion).answer,
            finished=answering.finished,
            answered_by=self.card.large if answering is large else self.card.small,
            confidence=decision.confidence,
            probability=decision.probability,
            deferred=decision.deferred,
            degraded=degraded,
            reason=reason,
            tokens={name: (r.prompt_tokens, r.completion_tokens) for name, r in answered},
            cost=None if self.size_ratio is None else sum(cost for cost in costs if cost),
            decision=decision,
            large=large,
            large_seconds=seconds,
        )

    def _instructed(self, prompt: str | Messages) -> Messages:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not messages or messages[-1]["role"] != "user":
            raise ValueError("messages: expected the last one to be of the role user")
        *before, last = messages
        text = last["content"]
        if not text.strip():
            raise ValueError("messages: the last one is empty; expected a question")
        if self.instruction and self.instruction not in text:
            text = f"{text}\n{self.instruction}"
        return [*before, {**last, "content": text}]

    async def _answer_all(
        self, prompts: Sequence[str | Messages], sampling: Sampling | None
    ) -> list[Answered | CascadeError]:
        for prompt in prompts:
            self._instructed(prompt)  # refuses what is no question before any is asked
        places = asyncio.Semaphore(max(self.small.batch_size, self.large.batch_size))

        async def answer(prompt: str | Messages) -> Answered | CascadeError:
            async with places:
                try:
                    return await self.answer_async(prompt, sampling)
                except CascadeError as error:
                    return error

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(prompt)) for prompt in prompts]
        return [task.result() for task in tasks]


class _Model:
    """An engine that is asked one question at a time, in time; what fails is a failed rollout."""

    def __init__(self, engine: Engine, seconds: float, grid: Sequence[str] = ()) -> None:
        self._engine, self._seconds, self._grid = engine, seconds, grid
        self._lock = threading.Lock()  # a model of this process is asked by one thread at a time
        self._batches: WeakKeyDictionary[asyncio.AbstractEventLoop, _Batches] = WeakKeyDictionary()

    async def ask(self, messages: Messages, sampling: Sampling, seed: int) -> Rollout:
        try:
            async with asyncio.timeout(self._seconds):
                return kept(await self._asked(_prompt(messages), sampling, seed))
        except TimeoutError:
            return _failed(f"no answer within {self._seconds:g} s")
        except Exception as error:  # whatever a model of this process raises
            return _failed(f"{type(error).__name__}: {error}")

    async def stream(
        self, messages: Messages, sampling: Sampling, seed: int
    ) -> AsyncGenerator[str | Rollout, None]:
        """Parts of the text, if the engine can, and the whole rollout in the end."""
        streaming = getattr(self._engine, "stream", None)
        if streaming is None:
            yield await self.ask(messages, sampling, seed)
            return
        parts = streaming(_prompt(messages), sampling, seed)
        deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    part = await anext(parts)
                yield kept(part) if isinstance(part, Rollout) else part
                if isinstance(part, Rollout):
                    return
        except TimeoutError:
            yield _failed(f"no whole answer within {self._seconds:g} s")
        finally:
            await parts.aclose()

    async def _asked(self, prompt: str | Messages, sampling: Sampling, seed: int) -> Rollout:
        if ask := getattr(self._engine, "ask", None):
            rollout: Rollout = await ask(prompt, sampling, seed)
            return rollout
        if not isinstance(prompt, str):
            return _failed("a model of this process takes a single message of a user")
        batches = self._batches.setdefault(
            asyncio.get_running_loop(), _Batches(self._generate, self._engine.batch_size)
        )
        return await batches.ask(prompt, sampling)

    def _generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Rollout]:
        more: dict[str, Any] = {"confidence_grid": self._grid} if self._grid else {}
        with self._lock:
            return [group[0] for group in self._engine.generate(prompts, sampling, **more)]


class _Batches:
    """What waits for a model of this process, asked together."""

    def __init__(self, generate: Any, size: int) -> None:
        self._generate, self._size = generate, size
        self._waiting: list[tuple[str, Sampling, asyncio.Future[Rollout]]] = []
        self._work: asyncio.Task[None] | None = None

    async def ask(self, prompt: str, sampling: Sampling) -> Rollout:
        future: asyncio.Future[Rollout] = asyncio.get_running_loop().create_future()
        self._waiting.append((prompt, sampling, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._ask_in_turn())
        return await future

    async def _ask_in_turn(self) -> None:
        while self._waiting:
            sampling = self._waiting[0][1]
            alike = [entry for entry in self._waiting if entry[1] == sampling][: self._size]
            self._waiting = [entry for entry in self._waiting if entry not in alike]
            asked = [entry for entry in alike if not entry[2].done()]  # the others gave up
            if not asked:
                continue
            try:
                rollouts = await asyncio.to_thread(
                    self._generate, [prompt for prompt, _, _ in asked], sampling
                )
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
                rollouts = [_failed(told)] * len(asked)
            for (_, _, future), rollout in zip(asked, rollouts, strict=True):
                with suppress(asyncio.InvalidStateError):  # one who gave up meanwhile
                    future.set_result(rollout)


def _prompt(messages: Messages) -> str | Messages:
    """A single message of a user as its text, which every engine takes."""
    return messages[0]["content"] if len(messages) == 1 else messages


def _failed(error: str) -> Rollout:
    return kept(Rollout("", None, None, finished=False, prompt_tokens=0, error=error))
