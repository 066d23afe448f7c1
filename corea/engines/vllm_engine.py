r"""vLLM in this process, as an engine.

:class:`VLLMEngine` is for models that transformers is too slow for. It is meant to do what
:class:`corea.engines.transformers_engine.TransformersEngine` does; where vLLM would do something
else, this is decided here:

1. vLLM gets the ids of prompts, encoded by our tokenizer, and gives ids, which our tokenizer
   decodes. It has none of its own, so it also stops at the tokens it is told: the end tokens of
   the tokenizer and of the model's generation config.
2. Log-probabilities are those of temperature 1 (``raw_logprobs``). Nothing that a model's own
   generation config asks for is used.
3. ``dtype`` is that of the weights unless it is named: left alone, vLLM makes half precision of
   float32.
4. Each completion is a request with a seed of its own, the one that
   :class:`corea.engines.server.ServerEngine` would send. Batches round differently, which in rare
   cases changes a token and then all that follows.
5. For the expected confidence each place where the texts of the grid part is asked for as one
   token with the log-probabilities of the tokens that may stand there. Prompt and completion
   are in vLLM's prefix cache then; ``prompt_logprobs`` would compute them once for each text.
6. Where tokens have to be the likeliest (``greedy_after``), the first that was drawn and is not is
   replaced, and the completion goes on from there at temperature 0.
7. vLLM runs its core in a process of its own, which :meth:`VLLMEngine.close` ends. Dropping the
   object does not free the memory for certain (vLLM's issue 1908).
8. Without a GPU prompts are computed whole, not in parts (chunked prefill): vLLM draws a token
   behind each part and drops all but the last by turning back the seeded random numbers, which
   ends it on a CPU ("CPU Generator does not use offset", vLLM 0.30.0). So a step
   may take as many tokens as the model has positions; a lower ``max_model_len`` starts sooner.
9. vLLM sends statistics of its use unless it is told not to; it is. It reports errors only. Both
   are environment variables, which are left alone where they are set.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from corea.checks import Floats, whole
from corea.engines.base import (
    AwaitedText,
    Rollout,
    Sampling,
    awaited_text,
    expectation_of_stated,
    request_seed,
    require_room,
    require_rows,
    wanted_samples,
)
from corea.engines.loading import (
    end_ids,
    generation_config,
    load_tokenizer,
    model_folder,
    read_json,
)
from corea.engines.model_errors import ModelError, first_line
from corea.engines.prompts import chat_prompt, encode_candidates, encode_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
_NEUTRAL = {  # of vLLM's arguments: what does not decide what a model says
    "disable_log_stats",
    "enforce_eager",
    "kv_cache_memory_bytes",
    "max_num_batched_tokens",
    "pipeline_parallel_size",
    "tensor_parallel_size",
}
_BLOCKS, _BLOCK = 64, 4096  # of each file of weights that the fingerprint reads
_LOWEST, _HIGHEST = 0.01, 2.0  # temperatures other than 0 that vLLM takes as they are


@dataclass(frozen=True, eq=False)
class VLLMEngine:
    """Generates with vLLM, started when it is first asked."""

    model: str | Path  # a folder or a name, as for `model_folder`
    batch_size: int = 1024  # completions handed to vLLM at once
    chat: bool | None = None  # whether prompts go into the chat template; None: if there is one
    sequences: int = 256  # completions worked on at once; fewer when memory is short
    dtype: str = "auto"  # of the weights, such as "bfloat16"; as stored when "auto"
    memory: float = 0.9  # fraction of the GPU's memory for vLLM; without one, of the machine's
    max_model_len: int | None = None  # tokens of prompt and completion; the model's own when None
    more: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `vllm.LLM`
    # where the running vLLM is kept; copies with another `chat` share it
    running: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check the values, and that vLLM and the model are there."""
        whole(self.batch_size, "batch_size", 1)
        whole(self.sequences, "sequences", 1)
        if self.max_model_len is not None:
            whole(self.max_model_len, "max_model_len", 2)
        if not 0 < self.memory <= 1:
            raise ValueError(f"memory is {self.memory!r}; expected a share in (0, 1]")
        if importlib.util.find_spec("vllm") is None:
            raise ModelError(
                "vLLM is not installed. With a GPU: environment.yml, which has the extra gpu; "
                "without one, `make test-vllm` installs it in .venv-vllm. Or use the engine "
                "transformers"
            )
        template = bool(self.tokenizer.chat_template)
        if self.chat and not template:
            raise ValueError("chat is True, but the tokenizer has no chat template")
        object.__setattr__(self, "chat", template if self.chat is None else self.chat)

    @property
    def folder(self) -> Path:
        """Where the model's files are; those of a hub are fetched first."""
        if "folder" not in self.running:
            self.running["folder"] = model_folder(self.model)
        folder: Path = self.running["folder"]
        return folder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, as :func:`corea.engines.loading.load_model` reads it."""
        if "tokenizer" not in self.running:
            self.running["tokenizer"] = load_tokenizer(self.folder)
        return self.running["tokenizer"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over a sample of the weights' files and the settings that decide answers."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in sorted(self.folder.glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as stream:
                for k in range(_BLOCKS):
                    stream.seek(k * size // _BLOCKS)
                    digest.update(stream.read(_BLOCK))
        more = {name: value for name, value in self.more.items() if name not in _NEUTRAL}
        settings = ["vllm", self.dtype, self.chat, len(self.tokenizer), more]
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    @property
    def parts_at_once(self) -> int:
        """One: a part is as many completions as are handed over at once."""
        return 1

    @property
    def gives_expected_confidence(self) -> bool:
        """Yes: it scores any text."""
        return True

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        pooled_states: bool = False,
        confidence_grid: Sequence[str] = (),
        samples: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Rollout]]:
        """As :meth:`corea.engines.base.Engine.generate`; vLLM gives no pooled states."""
        if pooled_states:
            raise ValueError(
                "pooled_states is not to be had from vLLM; use the engine transformers"
            )
        if sampling.temperature and not _LOWEST <= sampling.temperature <= _HIGHEST:
            raise ValueError(
                f"temperature is {sampling.temperature}; vLLM takes 0, or {_LOWEST} to {_HIGHEST}"
            )
        tokenizer = self.tokenizer
        texts = [chat_prompt(tokenizer, text) for text in prompts] if self.chat else prompts
        encoded = encode_prompts(tokenizer, texts)
        awaited = awaited_text(tokenizer, sampling)
        drafts = [
            _Draft(
                i,
                number,
                prompts[i],
                encoded[i],
                greedy=awaited is not None and bool(awaited.behind(texts[i])),
            )
            for i, number in wanted_samples(prompts, sampling, samples)
        ]
        answers: list[list[Rollout]] = [[] for _ in prompts]
        if not drafts:
            return answers
        require_room(self._positions, encoded, sampling.max_completion_tokens)
        self._write(drafts, sampling, awaited)
        if not all(np.isfinite(draft.logprobs).all() for draft in drafts):
            raise FloatingPointError("the model gives probabilities that are not finite numbers")
        completions = tokenizer.batch_decode(
            [draft.ids for draft in drafts],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        expected = mass = [None] * len(drafts)
        if confidence_grid:
            found = expectation_of_stated(
                [texts[draft.prompt] for draft in drafts],
                completions,
                confidence_grid,
                self._candidate_logprobs,
            )
            expected, mass = (values.tolist() for values in found)
        for k, draft in enumerate(drafts):
            answers[draft.prompt].append(
                Rollout(
                    completion=completions[k],
                    token_ids=np.array(draft.ids, dtype=np.int64),
                    logprobs=np.array(draft.logprobs, dtype=np.float32),
                    finished=draft.finished,
                    prompt_tokens=len(draft.before),
                    expected_confidence=expected[k],
                    expected_mass=mass[k],
                )
            )
        return answers

    def plain(self) -> VLLMEngine:
        """The same running model for prompts that stand in the chat template already."""
        return replace(self, chat=False)

    def next_logprobs(
        self, rows: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> tuple[Floats, NDArray[np.int64]]:
        """As :func:`corea.engines.transformers_engine.next_logprobs`, with this model."""
        require_rows(rows)
        require_room(self._positions, rows, 1)
        asked = {"temperature": 0.0, "max_tokens": 1, "logprob_token_ids": list(tokens)}
        written = self._ask(rows, [asked] * len(rows))
        # the first is that of the token vLLM took
        found = [one.logprobs.logprobs[1:] for one in written]
        scores = np.array(found, dtype=np.float64).reshape(len(rows), len(tokens))
        if np.isnan(scores).any():
            raise FloatingPointError("the model gives log-probabilities that are not numbers")
        return scores, np.array([one.token_ids[0] for one in written], dtype=np.int64)

    def close(self) -> None:
        """End vLLM's processes, which frees all they held; to ask again starts it again."""
        llm = self.running.pop("llm", None)
        if llm is None:
            return
        import psutil

        core = llm.llm_engine.engine_core
        manager = getattr(getattr(core, "resources", None), "engine_manager", None)
        processes = (
            [psutil.Process(process.pid) for process in manager.processes] if manager else []
        )
        for process in tuple(processes):
            processes += process.children(recursive=True)
        core.shutdown()
        _, left = psutil.wait_procs(processes, timeout=30)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=30)

    @property
    def _llm(self) -> Any:
        if "llm" not in self.running:
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            import vllm
            from vllm.platforms import current_platform

            arguments = {
                "dtype": _stored_dtype(self.folder) if self.dtype == "auto" else self.dtype,
                "gpu_memory_utilization": self.memory,
                "max_model_len": self.max_model_len,
                "max_num_seqs": self.sequences,
                "skip_tokenizer_init": True,
                "generation_config": "vllm",
                "load_format": "safetensors",
                "logprobs_mode": "raw_logprobs",
                "enable_prefix_caching": True,
                **({"enable_chunked_prefill": False} if current_platform.is_cpu() else {}),
                **self.more,
            }
            try:
                self.running["llm"] = vllm.LLM(str(self.folder), **arguments)
            except Exception as error:  # of several libraries
                raise ModelError(
                    f"{Path(self.model).name}: vLLM does not start ({first_line(error)}); what it "
                    "reported before says why"
                ) from error
        return self.running["llm"]

    @property
    def _positions(self) -> int:
        positions: int = self._llm.model_config.max_model_len
        return positions

    @property
    def _ends(self) -> list[int]:
        return end_ids(generation_config(self.folder), self.tokenizer)

    def _ask(
        self, rows: Sequence[Sequence[int]], settings: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """What vLLM writes behind each row of ids: completions with ids and log-probabilities."""
        llm = self._llm
        import vllm

        requests = [
            vllm.SamplingParams(detokenize=False, flat_logprobs=True, skip_clone=True, **request)
            for request in settings
        ]
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        return [output.outputs[0] for output in llm.generate(prompts, requests, use_tqdm=False)]

    def _write(
        self, drafts: Sequence[_Draft], sampling: Sampling, awaited: AwaitedText | None
    ) -> None:
        """Complete drafts, with the likeliest tokens behind an awaited text."""
        ends, limit = self._ends, sampling.max_completion_tokens
        unfinished = list(drafts)
        while unfinished:
            written = self._ask(
                [draft.before + draft.ids for draft in unfinished],
                [
                    {
                        "temperature": 0.0 if draft.greedy else sampling.temperature,
                        "max_tokens": limit - len(draft.ids),
                        "seed": request_seed(draft.text, draft.number, sampling),
                        "stop_token_ids": ends,
                        "logprobs": int(awaited is not None),  # one more: the likeliest token's
                    }
                    for draft in unfinished
                ],
            )
            unfinished = [
                draft
                for draft, more in zip(unfinished, written, strict=True)
                if draft.go_on(more, awaited, ends) and len(draft.ids) < limit
            ]

    def _candidate_logprobs(
        self, prompts: Sequence[str], openings: Sequence[str], candidates: Sequence[str]
    ) -> Floats:
        """Log-probabilities (n, K) of candidates after openings; NaN where they do not fit."""
        prefixes, suffixes = encode_candidates(self.tokenizer, prompts, openings, candidates)
        scores = np.full((len(prompts), len(candidates)), np.nan)
        places: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        fitting = [
            i
            for i, (prefix, row) in enumerate(zip(prefixes, suffixes, strict=True))
            if len(prefix) + max(map(len, row)) <= self._positions
        ]
        for i in fitting:
            for suffix in suffixes[i]:
                for j, token in enumerate(suffix):
                    tokens = places.setdefault((i, tuple(suffix[:j])), [])
                    if token not in tokens:
                        tokens.append(token)
        asked = self._ask(
            [[*prefixes[i], *begun] for i, begun in places],
            [
                {"temperature": 0.0, "max_tokens": 1, "logprob_token_ids": tokens}
                for tokens in places.values()
            ],
        )
        # the first is that of the token vLLM took
        found = {
            place: dict(zip(tokens, next_token.logprobs.logprobs[1:], strict=True))
            for (place, tokens), next_token in zip(places.items(), asked, strict=True)
        }
        for i in fitting:
            for k, suffix in enumerate(suffixes[i]):
                scores[i, k] = sum(
                    found[i, tuple(suffix[:j])][token] for j, token in enumerate(suffix)
                )
        if np.isnan(scores[fitting]).any():
            raise FloatingPointError("the model gives log-probabilities that are not numbers")
        return scores


@dataclass
class _Draft:
    """A completion that is being written."""

    prompt: int  # which one
    number: int  # of the sample
    text: str  # what was asked
    before: list[int]  # ids of the prompt
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    greedy: bool = False  # whether it goes on with the likeliest tokens

    def go_on(self, written: Any, awaited: AwaitedText | None, ends: Sequence[int]) -> bool:
        """Take what vLLM wrote; whether it goes on from a token that had to be another."""
        flat = written.logprobs
        self.ids += written.token_ids
        self.logprobs += [flat.logprobs[k] for k in flat.start_indices]
        self.finished = written.finish_reason == "stop"
        if awaited is None or self.greedy:
            return False
        state = ""
        for k, (token, first) in enumerate(zip(written.token_ids, flat.start_indices, strict=True)):
            likeliest = flat.token_ids[first + 1]
            if state == awaited.text and token != likeliest:
                self.ids[k:] = [likeliest]
                self.logprobs[k:] = [flat.logprobs[first + 1]]
                self.finished = likeliest in ends
                self.greedy = True
                return not self.finished
            state = awaited[state, token]
        return False


# --- files --------------------------------------------------------------------------------------


def _stored_dtype(folder: Path) -> str:
    """What the weights are stored as; left to vLLM where the config does not say."""
    config = read_json(folder / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype")
    return stored if isinstance(stored, str) else "auto"
