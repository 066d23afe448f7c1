"""Fake backends and a served cascade, each in a process of its own, and clients that ask it."""

import asyncio
import collections
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import openai

from corea.thresholds.card import Card

HERE = Path(__file__).resolve().parent
FACTS = {
    "threshold": 0.7,
    "questions": 100,
    "expected": {},
    "datasets": {"sums": 100},
    "smallest_questions": 50,
    "least_deferral": 0.0,
    "table": [],
    "guarantee": {"kind": "disagreement", "level": 0.1, "delta": 0.05, "words": "..."},
}
SERVE = (
    "import json, sys; from corea.serving.app import Limits; from corea.serving.serve import serve;"
    " card, small, large, more = sys.argv[1:]; more = json.loads(more);"
    " serve(card, small, large, port=0, **{**more, 'limits': Limits(**more.pop('limits', {}))})"
)


def card(path, **changed):
    Card(**{"small": "small", "large": "large", **FACTS, **changed}).save(path)
    return path


def ended(process, number=signal.SIGKILL):
    if process.poll() is None:
        process.send_signal(number)
    status = process.wait(timeout=30)
    process.stdout.close()
    return status


class Backend:
    """A fake backend that can be killed and started again at its address."""

    def __init__(self, model, *flags):
        self.command = [sys.executable, str(HERE / "fake_backend.py"), model, *flags]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self):
        python, script, *rest = self.command
        command = [python, script, str(self.port), *rest]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline(), "the fake backend did not start"

    def kill(self):
        ended(self.process)


class Served:
    """``serve`` in a process, until it is ended."""

    def __init__(self, card_path, small, large, answers, environment=(), **more):
        told = json.dumps({"answers": str(answers), **more})
        command = [sys.executable, "-c", SERVE, str(card_path), small, large, told]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), **dict(environment)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        said = self.process.stdout.readline()
        assert said.startswith("serving"), "the cascade is not served"
        self.url, self.answers = said.split()[-1], Path(answers)

    def end(self, number=signal.SIGTERM):
        return ended(self.process, number)


@contextlib.contextmanager
def backends(*flags):
    started = []
    try:
        for model in ("small", "large"):
            started.append(Backend(model, *flags))
        yield started
    finally:
        for backend in started:
            backend.kill()


@dataclass
class Outcome:
    """What one request came to."""

    number: int
    answer: object
    error: object
    seconds: float

    def sound(self):
        """Whether it is one whole answer to its question, or one error."""
        if self.error is not None:
            return self.answer is None and isinstance(self.error, openai.APIError)
        text = self.answer.choices[0].message.content
        told = self.answer.corea
        by = told["answered_by"]
        return text.startswith(f"By {by}: \\boxed{{{self.number}}}") and told["reason"]


async def load(url, questions, concurrency, at=(), ramp=0.0):
    """Ask all, so many at once, begun in ``ramp`` seconds; ``at``: (share answered, what then)."""
    outcomes, left = [], collections.deque(enumerate(questions))
    due = collections.deque(sorted(at, key=lambda step: step[0]))

    async def work(client, place):
        await asyncio.sleep(ramp * place / concurrency)
        while left:
            number, question = left.popleft()
            begun, answer, error = time.perf_counter(), None, None
            try:
                answer = await client.chat.completions.create(
                    model="corea", messages=[{"role": "user", "content": question}]
                )
            except openai.APIError as caught:
                error = caught
            outcomes.append(Outcome(number, answer, error, time.perf_counter() - begun))
            if due and len(outcomes) >= due[0][0] * len(questions):
                await asyncio.to_thread(due.popleft()[1])

    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, timeout=60
    ) as client:
        await asyncio.gather(*(work(client, i) for i in range(concurrency)))
    return outcomes


def check(outcomes, log, n):
    """Exactly one sound answer or error each; in the log all that were answered, none twice."""
    assert sorted(outcome.number for outcome in outcomes) == list(range(n))
    unsound = [outcome for outcome in outcomes if not outcome.sound()]
    assert not unsound, unsound[:3]
    rows = log.groupby(["question_id", "system"]).size()
    assert (rows == 1).all()
    answered = {outcome.answer.id: outcome.answer.corea for outcome in outcomes if outcome.answer}
    assert len(answered) == sum(outcome.answer is not None for outcome in outcomes)
    said = log[log["outcome"].isin(["small", "large", "degraded"])]
    assert set(said["question_id"]) == set(answered)
    for name, told in answered.items():
        mine = said[said["question_id"] == name].set_index("system")
        outcome = "degraded" if told["degraded"] else told["answered_by"]
        assert (mine["outcome"] == outcome).all()
        assert set(mine.index) == ({"small", "large"} if told["deferred"] else {"small"})
        confidence = mine["confidence"]["small"]
        assert told["confidence"] == (None if confidence != confidence else confidence)
    failed = sum(getattr(outcome.error, "status_code", 0) == 502 for outcome in outcomes)
    assert log[log["outcome"] == "error"]["question_id"].nunique() == failed


def metric(url, name):
    """Samples of a metric: labels to value."""
    import urllib.request

    text = urllib.request.urlopen(url.replace("/v1", "/metrics")).read().decode()
    found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.M)
    return {labels: float(value) for labels, value in found}
