r"""The decision world: questions with options, for models small enough to train here.

A model world as :mod:`corea.tasks.microworld`, on the same names, with the same caveat: nothing in
it is evidence about real language models. What is put in:

1. ``choices`` (the part of CommonsenseQA in paper B): which of the five digits is a name (asked
   in several ways), or a sum modulo 5 of names and digits. The digits are the options, always in
   the same order: a tiny model does not learn to read shuffled options. With reasoning the sum is
   written out and the letter is that of its last digit; without, the letter follows at once,
   which is a matter of knowing one name, or of adding in one's head.
2. ``fact_choices`` (OpenBookQA; never trained on after pretraining): the same in words, with
   four options and a fact: of two names the digit of one, of a single name that of another,
   which is of no use.
3. ``messages`` (OpenAI Moderation): one to four names; a message is unsafe if any of its names
   stands for 0. The reasoning is the digit of each name in turn.
4. ``lists`` (XSTest; never trained on after pretraining): longer messages in another form.
5. What a name stands for is stated in the corpus with a noise of the name's own, as in the
   microworld. So the model is sure of some names, half sure of others, and does not know the
   rest. It states its reasoning as if it were certain, and the decision follows from the
   reasoning without exception: a reader of the corpus has no reason to doubt a decision once the
   reasoning is written.
6. A part of the corpus is without reasoning. There the decision is as noisy as what was believed,
   so that its probability is what is known.

Splits are by a hash of what is asked, as in the microworld, and share the names. For single names
the ways of asking differ, or the fact beside them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from corea import checks
from corea.tasks import microworld
from corea.tasks.decision_questions import (
    END_OF_THINKING,
    LETTERS,
    NO_THINKING,
    THINK,
    VERDICTS,
    DecisionQuestion,
)

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )

DATASETS = ("choices", "fact_choices", "messages", "lists")
CHOICES = DATASETS[:2]
_STEPS = {"choices": (0, 2), "fact_choices": (0, 2)}  # fewest and most
_NAMES = {"choices": (1, 2), "fact_choices": (1, 2), "messages": (1, 4), "lists": (3, 5)}
_ASKED = (
    *("{}", "Which digit is {}?", "What digit is {}?", "Which digit has {}?", "{} is which digit?"),
    *("{} is what digit?", "{} has which digit?", "{} has what digit?", "The digit of {} is?"),
)
_PLAIN = 0.6  # of the sums, as few steps as their names allow
_N_OPTIONS = {"choices": 5, "fact_choices": 4}
_UNSAFE = 0  # the digit of names that make a message unsafe

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DecisionWorld:
    """What is true in the decision world, and how well its corpus says so."""

    world: microworld.World = field(default_factory=microworld.World)  # names and their noise
    direct: float = 0.4  # share of the corpus without reasoning
    mixture: tuple[float, ...] = (0.5, 0.1, 0.3, 0.1)  # share of each dataset in the corpus

    def __post_init__(self) -> None:
        """Check every field."""
        checks.unit_interval([self.direct], "direct")
        microworld.require_shares(self.mixture, "mixture", len(DATASETS))
        if self.world.modulus != len(LETTERS):
            raise ValueError(
                f"world.modulus is {self.world.modulus}; expected {len(LETTERS)}, a letter each"
            )


@dataclass(frozen=True)
class _Sum:
    """A sum of digits and names in this form; the digit of a name may be given as a fact."""

    operands: tuple[str, ...]
    form: str
    given: str = ""

    def __str__(self) -> str:
        joined = (" plus " if self.given else "+").join(self.operands)
        return self.form.format(joined)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(operand for operand in self.operands if not operand.isdigit())


@dataclass(frozen=True)
class _Message:
    """A message of these names."""

    names: tuple[str, ...]


# Questions


def questions(own: DecisionWorld, dataset: str, split: str, n: int) -> list[DecisionQuestion]:
    """The first n questions of a split; fewer are the beginning of more.

    Questions with every number of names come in turn; their level is that number, plus one. No
    question is in two splits, nor in the corpus.

    Example:
        >>> question = questions(DecisionWorld(), "choices", "test", 2)[0]
        >>> question.level, question.options, question.choices
        (2, ('A', 'B', 'C', 'D', 'E'), ('0', '1', '2', '3', '4'))
    """
    checks.one_of(dataset, "dataset", DATASETS)
    checks.one_of(split, "split", microworld.SPLITS)
    checks.whole(n, "n", 1, 10**9)
    place = DATASETS.index(dataset), microworld.SPLITS.index(split)
    rng = np.random.default_rng([own.world.seed, 4, *place])
    fewest, most = _NAMES[dataset]

    def draw(count: int) -> tuple[tuple[str, str], DecisionQuestion]:
        made = _question(own, dataset, _draw(own, dataset, split, count, rng))
        return (made.text, made.fact), made

    drawn = microworld.take_in_turn(n, range(fewest, most + 1), draw, f"{dataset} ({split})")
    return [replace(made, question_id=f"{split}-{i:05d}") for i, made in enumerate(drawn)]


def _draw(
    own: DecisionWorld, dataset: str, pool: str, count: int, rng: np.random.Generator
) -> _Sum | _Message:
    """What a question of a pool asks, with this count of names."""
    names = microworld.facts_of(own.world).names
    while True:
        chosen = [names[i] for i in rng.choice(len(names), size=count, replace=False)]
        if dataset not in CHOICES:
            if _pool(dataset, chosen) == pool:
                return _Message(tuple(chosen))
            continue
        fewest, most = _STEPS[dataset]
        fewest = max(fewest, count - 1)
        steps = fewest if rng.random() < _PLAIN else int(rng.integers(fewest, most + 1))
        operands = [str(digit) for digit in rng.integers(own.world.modulus, size=steps + 1)]
        places = np.sort(rng.choice(steps + 1, size=count, replace=False))
        for place, name in zip(places, chosen, strict=True):
            operands[place] = name
        given = ""
        if dataset == "fact_choices":
            given = chosen[0]
            if count == 1:
                given = next(name for name in rng.permutation(names) if name not in chosen)
        form = "What is {}?" if given else "{}" if steps else _ASKED[rng.integers(len(_ASKED))]
        drawn = _Sum(tuple(operands), form, given)
        asked = [given, form] if len(operands) == 1 else []
        if _value(own, drawn) < _N_OPTIONS[dataset] and _pool(dataset, operands + asked) == pool:
            return drawn


def _pool(dataset: str, parts: list[str]) -> str:
    task = "sum" if dataset in CHOICES else "message"
    return microworld.pool_of(f"{task} {' '.join(sorted(parts))}")


def _question(own: DecisionWorld, dataset: str, drawn: _Sum | _Message) -> DecisionQuestion:
    """The question, still without a name."""
    level = len(drawn.names) + 1
    if isinstance(drawn, _Message):
        joined = " and " if dataset == "lists" else " "
        gold = VERDICTS[int(any(_digit(own, part) == _UNSAFE for part in drawn.names))]
        return DecisionQuestion(dataset, "", joined.join(drawn.names), gold, level=level)
    listed = tuple(str(digit) for digit in range(_N_OPTIONS[dataset]))
    fact = f"{drawn.given} is {_digit(own, drawn.given)}" if drawn.given else ""
    gold = LETTERS[_value(own, drawn)]
    return DecisionQuestion(dataset, "", str(drawn), gold, listed, fact, level)


def _digit(own: DecisionWorld, operand: str) -> int:
    facts = microworld.facts_of(own.world)
    return int(operand) if operand.isdigit() else int(facts.digit[facts.names.index(operand)])


def _value(own: DecisionWorld, drawn: _Sum) -> int:
    return sum(_digit(own, operand) for operand in drawn.operands) % own.world.modulus


# Corpus


def corpus(own: DecisionWorld, n: int, seed: int) -> list[dict[str, str]]:
    r"""Questions with completions to pretrain on: noisy, and sure of every decision.

    With the probability of its noise a name is said to stand for a random digit. A name that is
    given as a fact is what the fact says. Reasoning and decision follow from that.

    Example:
        >>> row = corpus(DecisionWorld(direct=1.0, mixture=(1, 0, 0, 0)), 1, seed=0)[0]
        >>> row["completion"][:-1]
        '<think>\n</think>\n'
    """
    checks.whole(n, "n", 1, 10**9)
    checks.whole(seed, "seed", 0, 2**63 - 1)
    rng = np.random.default_rng([own.world.seed, 5, seed])
    shares = np.asarray(own.mixture) / sum(own.mixture)
    rows = []
    for place in rng.choice(len(DATASETS), size=n, p=shares):
        dataset = DATASETS[place]
        fewest, most = _NAMES[dataset]
        while True:
            drawn = _draw(own, dataset, "corpus", int(rng.integers(fewest, most + 1)), rng)
            question = _question(own, dataset, drawn)
            thoughts, decision = _write(own, drawn, rng)
            if decision < len(question.options):
                break  # a noisy sum may be none of four options: nobody would write that
        direct = rng.random() < own.direct
        opening = NO_THINKING if direct else f"{THINK}\n{thoughts}\n{END_OF_THINKING}\n"
        prompt = question.prompt(reasoning=not direct)
        if direct and not question.choices:
            prompt, opening = prompt + NO_THINKING, ""
        rows.append({"prompt": prompt, "completion": opening + question.options[decision]})
    return rows


def _write(own: DecisionWorld, drawn: _Sum | _Message, rng: np.random.Generator) -> tuple[str, int]:
    """The reasoning, and the place of the option it comes to."""
    facts = microworld.facts_of(own.world)
    operands = drawn.names if isinstance(drawn, _Message) else drawn.operands
    digits = []
    for operand in operands:
        digit = _digit(own, operand)
        if not operand.isdigit() and not (isinstance(drawn, _Sum) and operand == drawn.given):
            noise = facts.noise[facts.names.index(operand)]
            digit = int(rng.integers(own.world.modulus)) if rng.random() < noise else digit
        digits.append(digit)
    if isinstance(drawn, _Message):
        return ", ".join(map(str, digits)), int(_UNSAFE in digits)
    steps, value = microworld.add_up(digits, own.world.modulus)
    recalled = "+".join(map(str, digits))
    return f"{recalled}: {', '.join(steps)}." if steps else f"{recalled}.", value


# Known truth


def sampler_accuracy(
    own: DecisionWorld, question: DecisionQuestion, temperature: float = 1.0
) -> float:
    """How often a perfect learner of the corpus decides right when it samples its reasoning.

    As :func:`corea.tasks.microworld.sampler_accuracy`, for what is believed of every name; with
    four options, given that the reasoning comes to one of them.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature!r}; expected a number from 0")
    facts = microworld.facts_of(own.world)
    k = own.world.modulus

    def believed(operand: str, given: str = "") -> Floats:
        sure = operand.isdigit() or operand == given
        noise = 0.0 if sure else float(facts.noise[facts.names.index(operand)])
        return microworld.sharpened(noise, _digit(own, operand), k, temperature)

    if not question.choices:
        names = question.text.replace(" and ", " ").split()
        safe = float(np.prod([1 - believed(name)[_UNSAFE] for name in names]))
        return safe if question.gold == VERDICTS[0] else 1 - safe
    given = question.fact.split(" ")[0]
    operands = re.findall(r"[0-9]|\b(?:" + "|".join(facts.names) + r")\b", question.text)
    value = microworld.distribution_of_sum([believed(operand, given) for operand in operands])
    possible = value[: len(question.options)]
    return float(possible[LETTERS.index(question.gold)] / possible.sum())


# Tokenizer


def build_tokenizer(own: DecisionWorld | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of the microworld, with what prompts of decisions have in common as tokens."""
    own = DecisionWorld() if own is None else own
    tokenizer = microworld.build_tokenizer(own.world)
    _add_tokens(tokenizer, own)
    return tokenizer


def _add_tokens(tokenizer: PreTrainedTokenizerBase, own: DecisionWorld) -> None:
    """Make one token each of what prompts of decisions have in common, of marks and verdicts."""
    from tokenizers import AddedToken

    whole = [THINK, END_OF_THINKING]
    for dataset in DATASETS:
        for reasoning in (True, False):
            question = questions(own, dataset, "test", 1)[0]
            parts = question.prompt(reasoning=reasoning).split(question.text)
            if question.fact:
                parts = parts[0].split(question.fact) + parts[1:]
            whole += [part for part in parts if part]
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, special=False) for text in dict.fromkeys(whole)]
        + [AddedToken(word, normalized=False, special=False, single_word=True) for word in VERDICTS]
    )


def extend(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, own: DecisionWorld, *, seed: int
) -> None:
    """Give a model of the microworld the tokens of decisions, with random embeddings, in place."""
    import torch

    vocabulary = tokenizer.get_vocab()
    for name in microworld.facts_of(own.world).names:
        if name not in vocabulary:
            raise ValueError(
                f"{name!r} is no token of the model's tokenizer; expected a model of this world"
            )
    _add_tokens(tokenizer, own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
