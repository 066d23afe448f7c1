"""A tiny chat model in a folder, as if it came from a hub, and a server of it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from corea.engines.prompts import chat_prompt

ENVIRONMENT = {  # what vLLM needs to be told where there is no GPU
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # compiling takes longer than all that is computed here
    "HF_HUB_OFFLINE": "1",
}

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = [
    (f"{a}+{b}:", rf" {a}+{b}={a + b}. \boxed{{{a + b}}} \confidence{{0.{(7 * a + b) % 10}}}")
    for a in range(10)
    for b in range(9)
]
LONG = [f"{n}: " + f"{n % 10}+{n % 7}: {n % 9}+1:" * 8 for n in range(64)]
"""More tokens than fit into one step of the tests' engines."""
PROMPTS = [
    "3+4:",
    "1+1:",
    "0",
    "Tell me: what is 9+8 and what is 3+3, and why? 2+2:",
    "7+0: 7+0=7.",
]


def make_tokenizer():
    """A byte-level tokenizer with tokens across ``{0.`` and the like."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<end>", "<stop>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([question + answer for question, answer in TEXTS], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE
    )


def make_model(tokenizer):
    """A model that has seen the texts, alone and as a chat, often enough to end and to state."""
    torch.manual_seed(0)
    # not Qwen2: AutoTokenizer, which the server uses, gives those another way of splitting text
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,  # vLLM without a GPU takes multiples of it only
            max_position_embeddings=256,
            initializer_range=0.1,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=[1, 2],  # of the generation config too: the tokenizer has one of them
            tie_word_embeddings=False,
        )
    )
    rows = [
        tokenizer(text + end)["input_ids"]
        for i, (question, answer) in enumerate(TEXTS)
        for text, end in (
            (question + answer, "<end>"),
            (chat_prompt(tokenizer, question, answer), "<stop>" if i % 2 else "<end>"),
        )
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def save(folder: Path) -> None:
    """Make the model and its tokenizer and write them."""
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def served(folder: Path, log: Path, sequences: int) -> Iterator[str]:
    """Address of ``vllm serve`` on loopback, which has the model under the name ``tiny``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, Path(__file__).with_name("vllm_cli.py"), "serve", folder),
        *("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", port),
        *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", sequences),
        # as in the fixture `vllm`, and what a server without a GPU needs for seeds
        *("--max-num-batched-tokens", 256, "--no-enable-chunked-prefill"),
    ]
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [str(word) for word in command],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT},
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 900
        while not _answers(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"vllm serve does not start:\n{log.read_text()}")
            time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def _answers(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/health", timeout=5).is_success
    except httpx2.HTTPError:
        return False
