"""A cascade that is called, its log, and the server around it."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from urllib.parse import urlsplit

import cascade_processes as processes
import numpy as np
import openai
import pandas as pd
import pytest
import uvicorn
from cascade_processes import FACTS

from corea.confidence import CONFIDENCE_GRID
from corea.engines.base import Rollout
from corea.engines.server import ServerEngine
from corea.metrics.cascade import query_cost
from corea.records import RecordsError, pair, read_records, write_records
from corea.serving.app import Limits, Service
from corea.serving.cascade import Cascade, CascadeError
from corea.serving.log import AnswerLog, audited, losses, read_log
from corea.serving.serve import ServeError, serve
from corea.tasks.questions import INSTRUCTION
from corea.thresholds.card import Card, CardError
from corea.thresholds.recalibration import Recalibration

CARD = Card(small="small", large="large", **FACTS)


def said(text, *, error="", logprobs=(-0.5, -0.1)):
    logprobs = None if logprobs is None else np.float32(logprobs)
    return Rollout(text, None, logprobs, True, 30, n_tokens=10, error=error)


class Fixed:
    """An engine of this process that gives what a function of the prompt says."""

    fingerprint, batch_size, parts_at_once = "fixed", 4, 1

    def __init__(self, script):
        self.script = script if callable(script) else lambda prompt: script
        self.calls, self.options = [], []
        given = None if callable(script) else script.expected_confidence
        self.gives_expected_confidence = given is not None

    def generate(self, prompts, sampling, **more):
        self.calls.append(list(prompts))
        self.options.append(more)
        return [[self.script(prompt)] for prompt in prompts]


def cascade(small, large, card=CARD, **more):
    return Cascade(Fixed(small), Fixed(large), card, **more)


@contextlib.contextmanager
def closed_after(thing):
    yield thing
    thing.close()


SURE, UNSURE = said(r"\boxed{4} \confidence{0.9}"), said(r"\boxed{4} \confidence{0.6}")
LARGE, DOWN = said(r"\boxed{5}"), said("", error="cannot be reached")


@pytest.mark.parametrize(
    ("small", "large", "by", "answer", "reason"),
    [
        (SURE, LARGE, "small", "4", "0.9 is at least 0.7"),
        (UNSURE, LARGE, "large", "5", "0.6 is below 0.7"),
        (said(r"\boxed{4}"), LARGE, "large", "5", "no confidence"),
        (said(r"\boxed{4} \confidence{90%}"), LARGE, "large", "5", "no confidence"),
        (DOWN, LARGE, "large", "5", "small did not answer: cannot be reached"),
        (
            *(UNSURE, DOWN, "degraded", "4"),
            "0.6 is below 0.7; large did not answer: cannot be reached",
        ),
        (said("\ud800"), LARGE, "large", "5", "small did not answer: the answer cannot be kept"),
    ],
)
def test_who_answers_and_why(small, large, by, answer, reason):
    with closed_after(cascade(small, large, size_ratio=4.0)) as asked:
        found = asked.answer("2+2")
    assert found.reason.startswith(reason)
    assert (found.answered_by, found.degraded) == (
        ("small", True) if by == "degraded" else (by, False)
    )
    assert (found.answer, found.finished) == (answer, True)
    assert found.deferred == (by != "small")
    there = [name for name, r in (("small", small), ("large", large)) if not r.error]
    there = [name for name in there if name == "small" or by == "large"]
    there = [name for name in there if "cannot be kept" not in found.reason or name == "large"]
    assert found.tokens == dict.fromkeys(there, (30, 10))
    costs = {"small": query_cost(30, 10), "large": query_cost(30, 10, 4.0)}
    assert found.cost == sum(costs[name] for name in there)


@pytest.mark.parametrize(
    ("small", "policy", "why"),
    [
        (DOWN, "degrade", "small did not answer: .*large did not answer: cannot be reached"),
        (UNSURE, "error", "0.6 is below 0.7; large did not answer"),
    ],
)
def test_no_answer_is_an_error_that_says_why(small, policy, why):
    asked = cascade(small, DOWN, when_large_fails=policy)
    with closed_after(asked), pytest.raises(CascadeError, match=why):
        asked.answer("2+2")


def test_models_have_their_time_and_what_they_raise_is_told():
    def late(_):
        time.sleep(0.5)
        return SURE

    def broken(_):
        raise MemoryError("out of memory")

    with closed_after(cascade(late, LARGE, small_seconds=0.1)) as asked:
        found = asked.answer("2+2")
        assert (found.answered_by, found.cost) == ("large", None)
        assert found.reason == "small did not answer: no answer within 0.1 s"
    with closed_after(cascade(broken, LARGE)) as asked:
        assert asked.answer("2+2").reason == "small did not answer: MemoryError: out of memory"


def test_a_batch_is_asked_together_and_comes_in_order():
    def small(prompt):
        number = int(prompt.split()[0])
        return said(rf"\boxed{{{number}}} \confidence{{{0.9 if number % 2 else 0.1}}}")

    def large(prompt):
        return DOWN if prompt.startswith("4") else said(r"\boxed{0}")

    with closed_after(cascade(small, large, when_large_fails="error")) as asked:
        found = asked.answer_all([f"{i} ?" for i in range(8)])
        most = max(len(call) for call in asked.small.calls)
    assert isinstance(found.pop(4), CascadeError)
    assert [answered.answer for answered in found] == ["0", "1", "0", "3", "5", "0", "7"]
    assert most == 4


def test_a_question_is_asked_as_those_of_the_records_were():
    with closed_after(cascade(UNSURE, LARGE)) as asked:
        asked.answer("2+2")
        asked.answer(f"2+2\n{INSTRUCTION}")
        assert asked.small.calls == asked.large.calls == [[f"2+2\n{INSTRUCTION}"]] * 2
        talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2"}]
        with pytest.raises(CascadeError, match="takes a single message of a user"):
            asked.answer(talk)
        for wrong in ([], [*talk, {"role": "assistant", "content": "4"}], " "):
            with pytest.raises(ValueError, match="messages"):
                asked.answer(wrong)


def test_a_streamed_answer_is_the_final_one():
    async def parts(asked):
        return [part async for part in asked.stream("2+2")]

    for small, text in ((SURE, SURE.completion), (UNSURE, LARGE.completion)):
        *texts, last = asyncio.run(parts(cascade(small, LARGE)))
        assert "".join(texts) == last.text == text


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"threshold": None, "refusal": "too few"}, "certifies no threshold: too few"),
        ({"signal": "probe"}, "'probe', which is not known while a model answers"),
        ({"signal": "expected_confidence"}, "which the small engine lacks"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused(changed, why):
    card = Card(**{"small": "small", "large": "large", **FACTS, **changed})
    with pytest.raises(CardError, match=why):
        cascade(SURE, LARGE, card)


def test_a_signal_of_log_probabilities_is_read_and_missing_ones_defer():
    card = CARD.model_copy(update={"signal": "average_probability"})
    found = []
    for logprobs in ((-0.1, -0.1), (-2.0, -2.0), None):
        with closed_after(cascade(said(r"\boxed{4}", logprobs=logprobs), LARGE, card)) as asked:
            found.append(asked.answer("2+2"))
    assert [one.answered_by for one in found] == ["small", "large", "large"]
    assert round(found[0].confidence, 3) == 0.905
    assert found[2].confidence is None
    assert found[2].reason == "no confidence: the answer came without log-probabilities"


def test_an_expected_confidence_is_asked_for_where_the_card_reads_it():
    card = CARD.model_copy(update={"signal": "expected_confidence"})
    asked = cascade(replace(SURE, expected_confidence=0.65), LARGE, card)
    with closed_after(asked):
        found = asked.answer("2+2")
    assert (found.confidence, found.answered_by) == (0.65, "large")
    assert asked.small.options == [{"confidence_grid": CONFIDENCE_GRID}]
    assert asked.large.options == [{}]


def test_a_recalibrated_card_gives_a_probability():
    map_of = Recalibration(method="isotonic", knots=(0.0, 1.0), values=(0.2, 0.8), questions=9)
    with closed_after(
        cascade(UNSURE, LARGE, CARD.model_copy(update={"recalibration": map_of}))
    ) as c:
        assert c.answer("2+2").probability == pytest.approx(0.56)
    with closed_after(cascade(UNSURE, LARGE)) as c:
        assert c.answer("2+2").probability is None


# --- the log ------------------------------------------------------------------------------------

LINE = {
    "dataset": "served", "question_id": "q0", "system": "small", "sample": 0, "confidence": 0.9,
    "prompt_tokens": 30, "completion_tokens": 10, "outcome": "small", "deferred": False,
    "audit": True, "agrees": None, "error": "",
}  # fmt: skip


def lines(name, outcome, *, agrees=None, confidence=0.9, audit=True):
    one = {**LINE, "question_id": name, "outcome": outcome, "confidence": confidence}
    one |= {"audit": audit, "deferred": outcome in ("large", "degraded")}
    rows = [one]
    if outcome == "large" or agrees is not None:
        later = "audit" if outcome == "small" else outcome
        rows.append({**one, "system": "large", "outcome": later, "agrees": agrees})
        rows[1]["confidence"] = None
    return rows


def test_a_line_that_was_cut_is_taken_off_and_nothing_else(tmp_path):
    path = tmp_path / "log.jsonl"
    with closed_after(AnswerLog(path)) as log:
        log.append([LINE])
        with pytest.raises(BlockingIOError):
            AnswerLog(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"dataset": "ser' + b"v" * 10_000)
    assert len(read_log(path)) == 1
    with closed_after(AnswerLog(path)) as log:
        log.append([{**LINE, "question_id": "q1"}])
    assert path.read_bytes().startswith(whole)
    assert list(read_log(path)["question_id"]) == ["q0", "q1"]
    path.write_bytes(b"x" * 5000)
    AnswerLog(path).close()
    assert path.read_bytes() == b""
    assert path.stat().st_mode & 0o077 == 0 or os.umask(0o022) is None


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    write = os.write
    with closed_after(AnswerLog(path)) as log:
        log.append([LINE])
        monkeypatch.setattr(os, "write", lambda file, text: write(file, text[:20]))
        with pytest.raises(OSError, match="only 20 of"):
            log.append([LINE])
        monkeypatch.undo()
        log.append([{**LINE, "question_id": "q1"}])
    assert list(read_log(path)["question_id"]) == ["q0", "q1"]


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "nothing was answered"), ("[]\n", "line 1: found list"), ("{}\n", "line 1: no field")],
)
def test_a_file_that_is_no_log_is_refused(tmp_path, text, why):
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(RecordsError, match=why):
        read_log(path)


def test_records_and_losses_are_made_of_what_is_known():
    log = pd.DataFrame(
        [
            *lines("q0", "small", agrees=True),
            *lines("q1", "small", agrees=False),
            *lines("q2", "large", agrees=False, confidence=0.1),
            *lines("q3", "small"),  # its audit failed, or is still to come
            *lines("q4", "large", audit=False, confidence=0.2),
            *lines("q5", "degraded", confidence=0.3),
        ]
    )
    paired = pair(audited(log).table, "small", "large")
    assert list(paired["question_id"]) == ["q0", "q1", "q2"]
    assert list(paired["small_correct"]) == [True, False, False]
    assert paired["large_correct"].all()
    assert losses(log) == [0.0, 1.0, 0.0]
    verdicts = pd.DataFrame(
        [("q0", "small", 1), ("q0", "large", 1), ("q1", "small", 1), ("q1", "large", 0)],
        columns=["question_id", "system", "correct"],
    )
    records = audited(log, verdicts)
    assert list(pair(records.table, "small", "large")["small_correct"]) == [True, True]
    assert losses(log, verdicts) == [0.0, -1.0, 0.0]
    for wrong in (pd.concat([verdicts, verdicts[:1]]), verdicts.replace("q1", "q9")):
        with pytest.raises(RecordsError, match="is no answer of the log, or was there before"):
            audited(log, wrong)
    with pytest.raises(RecordsError, match=r"missing column\(s\) correct"):
        audited(log, verdicts[["question_id", "system"]])
    with pytest.raises(RecordsError, match="no answer of which"):
        audited(log[log["question_id"] == "q4"])


# --- the server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair_of_backends():
    with processes.backends() as started:
        yield started


def engines_for(backends):
    return [
        ServerEngine(name, backend.url, concurrency=8, attempts=1, timeout=20.0, body={})
        for name, backend in zip(("small", "large"), backends, strict=True)
    ]


def test_servers_are_asked_from_python_with_and_without_an_event_loop(pair_of_backends):
    small, large = engines_for(pair_of_backends)
    asked = Cascade(small, large, CARD)
    questions = [f"q{i} c={(0.9, 0.2)[i % 2]}" for i in range(16)]
    found = asked.answer_all(questions)
    assert [one.answer for one in found] == [str(i) for i in range(16)]
    assert [one.answered_by for one in found] == ["small", "large"] * 8

    async def talk(question):
        messages = [{"role": "system", "content": "Be brief."}]
        found = await asked.answer_async([*messages, {"role": "user", "content": question}])
        parts = [part async for part in asked.stream(question)]
        await asked.close_here()
        return found.answer, parts[-1].text, "".join(parts[:-1])

    for question in ("q7 c=0.1", "q7 c=0.9"):  # each on an event loop of its own
        answer, text, parts = asyncio.run(talk(question))
        assert answer == "7"
        assert text == parts
    assert asked.answer("q3 c=0.9").answer == "3"
    asked.close()
    small.close()
    large.close()


@contextlib.contextmanager
def running(tmp_path, backends, card=CARD, *, more=None, **options):
    """A service in a thread of this process; its address and itself."""
    engines = engines_for(backends)
    log = AnswerLog(tmp_path / "answered.jsonl")
    service = Service(Cascade(*engines, card, **(more or {})), log, **options)
    config = uvicorn.Config(service.app, log_level="error", http="h11", loop="asyncio")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", service
        finally:
            server.should_exit = True
            thread.join()
            log.close()
            for engine in engines:
                engine.close()


class Alarm:
    """Fires at the third loss."""

    lost = 0.0

    def update(self, loss):
        self.lost += loss
        return self.lost >= 3


def client_of(url, key="none"):
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30)


def ask(client, text, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="corea", messages=messages, **more)


def post(url, body, headers=None, path="/chat/completions"):
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json", **(headers or {})}
        connection.request("POST", parts.path + path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers


def rows_of(service):
    log = read_log(service.log.path)
    return log[~log["outcome"].isin(["audit"])]


def test_answers_come_whole_streamed_and_as_a_decision(tmp_path, pair_of_backends, monkeypatch):
    # what compares other answers takes seconds to start
    same = lambda ours, theirs, _: [a == b for a, b in zip(ours, theirs, strict=True)]  # noqa: E731
    monkeypatch.setattr("corea.serving.app.score_answers", same)
    more = {"size_ratio": 5.0}
    options = {"audit": 1.0, "keep_text": True, "on_loss": Alarm().update}
    with running(tmp_path, pair_of_backends, more=more, **options) as (url, service):
        client = client_of(url)
        kept = ask(client, "q1 c=0.9", metadata={"question_id": "mine"})
        deferred = ask(client, "q2 c=0.1", temperature=0.0, max_tokens=20, seed=4)
        assert [kept.corea["answered_by"], deferred.corea["answered_by"]] == ["small", "large"]
        assert (kept.usage.total_tokens, kept.usage.cost) == (40, 70.0)
        assert (deferred.usage.total_tokens, deferred.usage.cost) == (80, 70.0 + 350.0)
        assert deferred.choices[0].finish_reason == "stop"
        for text, by in (("q3 c=0.9", "small"), ("q4 c=0.1", "large")):
            *parts, last = ask(client, text, stream=True, stream_options={"include_usage": True})
            content = "".join(part.choices[0].delta.content or "" for part in parts)
            assert content.startswith(rf"By {by}: \boxed{{{text[1]}}}")
            assert last.usage.cost == (70.0 if by == "small" else 420.0)
            assert last.corea["answered_by"] == by
            assert parts[-1].choices[0].finish_reason == "stop"
            assert len({part.id for part in parts}) == 1
            assert (len(parts) > 4) == (by == "large")  # as it is written
        body = {"model": "corea", "messages": [{"role": "user", "content": "q5 c=0.2"}]}
        decision = client.post("/route", cast_to=object, body=body)
        assert (decision["choice"], decision["reason"]) == ("large", "0.2 is below 0.7")
        assert decision["scores"]["confidence"] == 0.2
        assert round(decision["scores"]["average_probability"], 3) == 0.779
        assert decision["message"]["content"].startswith("By small: \\boxed{5}")
        for i in range(6):
            ask(client, f"q{i} c=0.9 odd=large" if i % 2 else "q7 c=0.8")
        with pytest.raises(openai.APIError, match="large broke off"):
            list(ask(client, "q6 c=0.1 break=1", stream=True))
        assert [model.id for model in client.models.list()] == ["corea"]
        talk = [{"role": "user", "content": "q1"}, kept.choices[0].message.model_dump()]
        talk.append({"role": "user", "content": [{"type": "text", "text": "q8 c=0.9"}]})
        again = client.chat.completions.create(model="corea", messages=talk)
        assert again.corea["answer"] == "8"
        deadline = time.monotonic() + 20  # audits come after answers
        while sum(processes.metric(url, "corea_audited_total").values()) < 9:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        counted = processes.metric(url, "corea_questions_total")
        assert counted['{outcome="small"}'] == 9
        assert counted['{outcome="large"}'] == 2
        assert counted['{outcome="error"}'] == counted['{outcome="decided"}'] == 1
        assert processes.metric(url, "corea_deferral_rate")[""] == pytest.approx(4 / 13)
        assert processes.metric(url, "corea_cost_total")['{system="large"}'] > 700
        assert processes.metric(url, "corea_audited_total")['{agrees="false"}'] == 3
        assert processes.metric(url, "corea_drift_alarm") == {"": 1.0}
    log = read_log(service.log.path)
    assert log["name"].iloc[0] == "mine"
    assert set(log[log["outcome"] == "error"]["system"]) == {"small", "large"}
    records = audited(log)
    write_records(records, tmp_path / "audited.parquet")
    again = read_records(tmp_path / "audited.parquet")
    assert len(pair(again.table, "small", "large")) == 11
    with pytest.raises(RecordsError, match="missing column.* correct"):  # which nobody knows
        read_records(service.log.path)
    assert sum(losses(log)) == 3
    assert len(losses(log)) == 11
    assert (records.table["answer"].notna()).all()
    assert (log["completion"].dropna().str.startswith("By")).all()


def test_what_cannot_be_answered_is_refused_with_its_reason(tmp_path, pair_of_backends):
    key = "k" * 20
    limits = Limits(max_body=2000, max_tokens=100, read_seconds=0.3)
    good = {"model": "corea", "messages": [{"role": "user", "content": "q1 c=0.9"}]}
    given = {"Authorization": f"Bearer {key}"}
    with running(tmp_path, pair_of_backends, limits=limits, key=key) as (url, service):

        def told(body, headers=None):
            body = body if isinstance(body, bytes | str) else json.dumps(body)
            return post(url, body, {**given, **(headers or {})})[:2]

        for changed, status, why in (
            ({"model": "gpt"}, 404, "there is no model but 'corea'"),
            ({"messages": []}, 400, "messages"),
            ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role"),
            ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "question of the user"),
            ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "half of a surrogate"),
            ({"tools": [{}]}, 400, "parameter tools: is not taken"),
            ({"n": 2}, 400, "parameter n"),
            ({"logprobs": True}, 400, "parameter logprobs"),
            ({"max_tokens": 101}, 400, "max_tokens is above 100"),
            ({"max_tokens": 0}, 400, "max_completion_tokens is 0"),
            ({"max_completion_tokens": 0}, 400, "max_completion_tokens is 0"),
            ({"temperature": -1}, 400, "temperature is -1"),
            ({"messages": [{"role": "user", "content": "a" * 2000}]}, 413, "more than 2,000 bytes"),
        ):
            found, text = told({**good, **changed})
            assert (found, why in json.loads(text)["error"]["message"]) == (status, True), text
        for body, status in (
            (b"{", 400), (b"\xff", 400), (b"[" * 1500, 400), (b'{"a": 1, "a": 2}', 400),
        ):  # fmt: skip
            assert told(body)[0] == status
        assert told(good, {"Content-Type": "text/plain"})[0] == 415
        assert told(good, {"Host": "evil.example"})[0] == 403
        assert told(good, {"Authorization": "Bearer " + "k" * 19})[0] == 401
        assert told(good, {"Content-Length": "500"})[0] == 408
        with pytest.raises(openai.APIStatusError, match="more than 2,000 bytes") as caught:
            ask(client_of(url, key), "a" * 50_000)
        assert caught.value.status_code == 413
        with pytest.raises(openai.AuthenticationError):
            client_of(url).models.list()
        assert ask(client_of(url, key), "q1 c=0.9").corea["answer"] == "1"
        assert service.metrics.refused.labels("400")._value.get() == 15
    assert len(read_log(service.log.path)) == 1


def test_more_than_can_be_worked_on_is_told_to_come_again(tmp_path, pair_of_backends):
    limits = Limits(at_once=2, waiting=2, wait_seconds=0.5)
    text = "q{} c=0.9 wait=1.0,0"
    with running(tmp_path, pair_of_backends, limits=limits) as (url, service):
        outcomes = asyncio.run(processes.load(url, [text.format(i) for i in range(7)], 7))
        counted = [getattr(outcome.error, "status_code", 200) for outcome in outcomes]
        assert sorted(counted) == [200, 200, 429, 429, 429, 503, 503]
        for outcome in outcomes:
            assert outcome.error is None or int(outcome.error.response.headers["Retry-After"])
        assert ask(client_of(url), "q1 c=0.9").corea["answer"] == "1"  # nobody holds a place
    assert len(rows_of(service)) == 3


def test_a_client_that_hangs_up_ends_the_work_and_is_in_the_log(tmp_path, pair_of_backends):
    with running(tmp_path, pair_of_backends) as (url, service):
        parts = urlsplit(url)
        for text, stream in (("q1 c=0.9 wait=5,0", False), ("q2 c=0.1 wait=0,5", True)):
            body = {"model": "corea", "messages": [{"role": "user", "content": text}]}
            connection = http.client.HTTPConnection(parts.hostname, parts.port)
            headers = {"Content-Type": "application/json"}
            body = json.dumps({**body, "stream": stream})
            connection.request("POST", "/v1/chat/completions", body, headers)
            time.sleep(0.3)
            connection.close()
        deadline = time.monotonic() + 4  # sooner than the answers would be there
        while processes.metric(url, "corea_questions_total").get('{outcome="error"}', 0) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert processes.metric(url, "corea_at_work") == {"": 0.0}
    log = read_log(service.log.path)
    assert (log["error"] == "the client hung up, or the server was stopped").all()
    assert list(log["prompt_tokens"].fillna(0)) == [0, 30]  # what the small model wrote is there


def test_a_model_that_takes_too_long_is_done_without(tmp_path, pair_of_backends):
    more = {"small_seconds": 0.4, "large_seconds": 0.4}
    with running(tmp_path, pair_of_backends, more=more) as (url, _):
        client = client_of(url)
        for stream in (False, True):
            late = ask(client, "q1 c=0.1 wait=0,3", stream=stream)
            told = list(late)[-1].corea if stream else late.corea
            assert (told["answered_by"], told["degraded"]) == ("small", True)
            assert "large did not answer: no" in told["reason"]
            assert "answer within 0.4 s" in told["reason"]
        assert ask(client, "q2 c=0.9 wait=3,0").corea["answered_by"] == "large"
        with pytest.raises(openai.APIStatusError, match="no answer could be had") as caught:
            ask(client, "q2 c=0.9 wait=3,3")
        assert caught.value.status_code == 502


def test_what_cannot_be_recorded_is_not_answered(tmp_path, pair_of_backends, monkeypatch):
    with running(tmp_path, pair_of_backends) as (url, service):

        def full(rows):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(service.log, "append", full)
        with pytest.raises(openai.APIStatusError, match="could not be recorded") as caught:
            ask(client_of(url), "q1 c=0.9")
        assert caught.value.status_code == 503
        with pytest.raises(openai.APIError, match="could not be recorded"):
            list(ask(client_of(url), "q1 c=0.2", stream=True))
        monkeypatch.undo()
        assert ask(client_of(url), "q1 c=0.9").corea["answer"] == "1"


def test_nothing_is_lost_when_a_backend_or_the_service_is_killed(tmp_path, pair_of_backends):
    small, large = pair_of_backends
    card, answers = processes.card(tmp_path / "card.json"), tmp_path / "answered.jsonl"
    questions = [f"q{i} c={(0.9, 0.2)[i % 2]} wait=0.05,0.1" for i in range(100)]
    service = processes.Served(card, small.url, large.url, answers)
    steps = [(0.3, large.kill), (0.6, large.start)]
    outcomes = asyncio.run(processes.load(service.url, questions, 20, steps))
    log = read_log(answers)
    processes.check(outcomes, log, 100)
    assert all(outcome.error is None for outcome in outcomes)
    assert (log["outcome"] == "degraded").sum() >= 4

    steps = [(0.5, lambda: service.end(signal.SIGKILL))]
    again = asyncio.run(processes.load(service.url, questions, 20, steps))
    assert all(outcome.sound() for outcome in again)
    assert 40 < sum(outcome.error is None for outcome in again) < 100

    service = processes.Served(card, small.url, large.url, answers)  # goes on in the same log
    slow = ["q0 c=0.2 wait=0.5,0.5", "q1 c=0.9 wait=0.01,0"]
    steps = [(0.5, lambda: service.process.send_signal(signal.SIGTERM))]
    last = asyncio.run(processes.load(service.url, slow, 2, steps))
    assert service.end() == 0
    assert all(outcome.sound() and outcome.error is None for outcome in last)

    log = read_log(answers)
    assert (log.groupby(["question_id", "system"]).size() == 1).all()
    answered = [o.answer.id for o in [*outcomes, *again, *last] if o.answer]
    assert set(answered) <= set(log["question_id"])


def refused(tmp_path, backends, card=None, **more):
    small, large = (getattr(backend, "url", backend) for backend in backends)
    path = processes.card(tmp_path / "card.json") if card is None else card
    with pytest.raises((ServeError, CardError)) as caught:
        serve(path, small, large, answers=tmp_path / "log.jsonl", **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_service_that_cannot_be_started_says_why(tmp_path, pair_of_backends, monkeypatch):
    small, large = pair_of_backends
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused(tmp_path, pair_of_backends, port=port)
    assert told == f"cannot listen at 127.0.0.1, port {port}: Address already in use"
    told = refused(tmp_path, (large, small))
    assert "the card is about 'small', and the server has large, not 'small'" in told
    told = refused(tmp_path, (small, "http://127.0.0.1:9/v1"))
    assert told.startswith("the large model: the server cannot be reached")
    assert "the small model: no address" in refused(tmp_path, ("localhost", large))
    card = json.loads(processes.card(tmp_path / "card.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**card, "version": 2}))
    assert "field version: found 2, expected 1" in refused(tmp_path, pair_of_backends, other)
    assert "others can reach: set COREA_API_KEY" in refused(
        tmp_path, pair_of_backends, host="0.0.0.0"
    )
    monkeypatch.setenv("COREA_API_KEY", "short")
    assert "expected 16 or more" in refused(tmp_path, pair_of_backends, host="0.0.0.0")
    monkeypatch.delenv("COREA_API_KEY")
    with processes.backends("--without-logprobs") as without:
        probability = processes.card(tmp_path / "p.json", signal="average_probability")
        told = refused(tmp_path, without, probability)
    assert told.endswith("log-probabilities (average_probability), and its server gives none")
    for status, why in (("401", "Set OPENAI_API_KEY to a key"), ("400", "serve with vllm=False")):
        with processes.backends(f"--refuse={status}") as (_, refusing):
            told = refused(tmp_path, (small, refusing))
        assert told.startswith(f"the large model: HTTP {status}: no")
        assert why in told
    with closed_after(AnswerLog(tmp_path / "log.jsonl")):
        assert "is locked by another process" in refused(tmp_path, pair_of_backends, port=0)
