"""What :mod:`corea.engines.vllm_engine` uses of vLLM, by a model of transformers, one request at a time."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch


@dataclass
class SamplingParams:
    """The parameters that are used; any other is an error."""

    temperature: float
    max_tokens: int
    detokenize: bool
    flat_logprobs: bool
    skip_clone: bool
    seed: int | None = None
    logprobs: int | None = None
    logprob_token_ids: list[int] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)


def module(model: Any) -> ModuleType:
    """A module ``vllm`` whose every ``LLM`` is this model; ``started`` and ``ended`` count."""
    fake = ModuleType("vllm")
    fake.SamplingParams = SamplingParams
    fake.started, fake.ended = [], 0

    class LLM:
        def __init__(self, folder, **arguments):
            if arguments["dtype"] == "float4":
                raise ValueError("no such dtype\nand more of it")
            fake.started.append((folder, arguments))
            positions = arguments["max_model_len"] or model.config.max_position_embeddings
            self.model_config = SimpleNamespace(max_model_len=positions)
            self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.shutdown))

        def shutdown(self):
            fake.ended += 1

        def generate(self, prompts, requests, use_tqdm):
            assert not use_tqdm
            return [
                SimpleNamespace(outputs=[self.write(prompt["prompt_token_ids"], request)])
                for prompt, request in zip(prompts, requests, strict=True)
            ]

        @torch.no_grad()
        def write(self, prompt, request):
            assert len(prompt) < self.model_config.max_model_len
            draw = torch.Generator().manual_seed(request.seed or 0)
            ids, reason = [], "length"
            flat = SimpleNamespace(token_ids=[], logprobs=[], start_indices=[])
            while len(ids) < request.max_tokens:
                own = model(torch.tensor([prompt + ids])).logits[0, -1].float().log_softmax(-1)
                likeliest = int(own.argmax())
                if request.temperature:
                    scaled = (own / request.temperature).softmax(-1)
                    token = int(torch.multinomial(scaled, 1, generator=draw))
                else:
                    token = likeliest
                shown = [token, *([likeliest] if request.logprobs else request.logprob_token_ids)]
                flat.start_indices.append(len(flat.token_ids))
                flat.token_ids += shown
                flat.logprobs += own[shown].tolist()
                ids.append(token)
                if token in request.stop_token_ids:
                    reason = "stop"
                    break
            return SimpleNamespace(token_ids=ids, logprobs=flat, finish_reason=reason)

    fake.LLM = LLM
    return fake


def install(monkeypatch: Any, model: Any) -> ModuleType:
    """Let :func:`module` be what is imported as vllm, on a machine that it takes for one with a GPU."""
    fake, platforms = module(model), ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: False)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    found = "corea.engines.vllm_engine.importlib.util.find_spec"
    monkeypatch.setattr(found, lambda name: name == "vllm" or None)
    return fake
