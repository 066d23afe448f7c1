r"""What stands in for models and datasets where a profile is rehearsed: made here, from nothing.

1. The model is a decoder of two layers with a token for each byte and a chat template, taught for
   seconds to write ``\boxed{} \confidence{}`` or a decision, whatever it is asked. So its answers
   can be read and mean nothing.
2. The datasets are sums and made-up messages in the form of the original files
   (:mod:`corea.tasks.papers`), as many rows as their parts need.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from corea import checks
from corea.tasks.decision_questions import (
    END_OF_THINKING,
    LETTERS,
    THINK,
    VERDICTS,
    DecisionQuestion,
)
from corea.tasks.papers import DATASETS
from corea.tasks.questions import Question

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_ROWS = 40  # of a dataset whose parts are not drawn


# --- a model --------------------------------------------------------------------------------------


def tiny_model(folder: Path, *, steps: int = 150, seed: int = 0) -> Path:
    """Write a tiny chat model into a folder, of random weights that are then taught a little."""
    import torch
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = {c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE({"<|endoftext|>": 0, "<|im_end|>": 1} | letters, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
    )
    words = (THINK, END_OF_THINKING, *VERDICTS, r"\boxed{", r"\confidence{")
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
        model = transformers.Qwen2ForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        draw = random.Random(seed)  # noqa: S311
        for _ in range(steps):
            pairs = [_conversation(draw) for _ in range(8)]
            rows = [tokenizer([asked, said])["input_ids"] for asked, said in pairs]
            longest = max(len(asked) + len(said) for asked, said in rows)
            fill = [longest - len(asked) - len(said) for asked, said in rows]
            ids = [a + s + [0] * n for (a, s), n in zip(rows, fill, strict=True)]
            labels = [
                [-100] * len(a) + s + [-100] * n for (a, s), n in zip(rows, fill, strict=True)
            ]
            loss = model(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    transformers.utils.logging.disable_progress_bar()  # of writing, on standard error
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _conversation(draw: random.Random) -> tuple[str, str]:
    """What is asked in one of the papers' formats, in the chat template; and what may be said."""
    text = "".join(draw.choices("0123456789 abcdefghij", k=draw.randrange(10, 100)))
    letters = dict(enumerate(draw.choices("abcdefghij", k=5)))
    choices = DecisionQuestion("", "", text, "A", tuple(f"{k}{v}" for k, v in letters.items()))
    message, number = DecisionQuestion("", "", text, "Safe"), f"0.{draw.randrange(10)}"
    question = Question("", "", text, "A", "choice")
    answer = draw.choice([*LETTERS, *map(str, range(10))])
    asked, said = draw.choice(
        [
            (question.prompt, rf"\boxed{{{answer}}} \confidence{{{number}}}"),
            (question.router_prompt, number),
            *(
                (q.prompt(reasoning=True), f"{THINK}\nso\n{END_OF_THINKING}\n{option}")
                for q in (choices, message)
                for option in [draw.choice(q.options)]
            ),
        ]
    )
    head, tail = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    return f"{head}{asked}{tail}", f"{said}<|im_end|>"


# --- datasets -------------------------------------------------------------------------------------


def made_up(folder: Path, datasets: Sequence[str] = tuple(DATASETS)) -> Path:
    """Write datasets into a folder in the form of their original files.

    Args:
        folder: Where each gets a folder of its own, as ``COREA_DATA`` names one.
        datasets: Names in :data:`corea.tasks.papers.DATASETS`.
    """
    for name in datasets:
        checks.one_of(name, "dataset", DATASETS)
        for files, parts in _files(name).items():
            path = folder / name / files.replace("*", "made-up")
            path.parent.mkdir(parents=True, exist_ok=True)
            n = max(part.stretch[1] if part.stretch else _ROWS for part in parts)
            _write(path, [*_rows(name, n)])
    return folder


def _files(dataset: str) -> dict[str, list[Any]]:
    """The first file that each part of a dataset is looked for in, with these parts."""
    found: dict[str, list[Any]] = {}
    for part in DATASETS[dataset].parts.values():
        found.setdefault(part.files[0], []).append(part)
    return found


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _rows(dataset: str, n: int) -> Iterator[dict[str, Any]]:
    """Rows that differ in their text."""
    for i in range(n):
        right, asked = str(i % 10), f"What is the last digit of {i}?"
        others = [str((i + k) % 10) for k in range(1, 5)]
        letter = LETTERS[i % 4]
        options = [*others[: i % 4], right, *others[i % 4 :]]
        listed = [{"label": a, "text": t} for a, t in zip(LETTERS, options, strict=True)]
        row: dict[str, Any]
        match dataset:
            case "deepmath":
                row = {"question": asked, "final_answer": right, "difficulty": 1.0 + i % 5}
            case "math500":
                row = {"problem": asked, "answer": right, "level": 1 + i % 5}
            case "gsm8k":
                row = {"question": asked, "answer": f"It is the last.\n#### {right}"}
            case "olympiadbench":
                row = {"question": asked, "final_answer": [f"${right}$"], "context": None}
            case "gpqa":
                row = {"Question": asked, "Correct Answer": right}
                row |= {f"Incorrect Answer {k}": others[k] for k in (1, 2, 3)}
            case "commonsenseqa" | "openbookqa":
                row = {"id": str(i), "question": {"stem": asked, "choices": listed}}
                row |= {"answerKey": letter, "fact1": "a last digit stands at the end"}
            case "openai_moderation":
                row = {"prompt": f"Message {i} is {_tone(i)}.", "S": 0, "H": i % 2}
            case "xstest":
                row = {"id": str(i), "prompt": f"How do I keep message {i} {_tone(i)}?"}
                row |= {"type": "made up", "label": VERDICTS[i % 2].lower()}
            case _:
                raise NotImplementedError(f"{dataset}: nothing was made up for it yet; do so here")
        yield row


def _tone(i: int) -> str:
    return ("kind", "hateful")[i % 2]
