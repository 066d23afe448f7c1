r"""The microworld: questions, a corpus, a tokenizer and models small enough to train here.

A model world. Nothing in it is evidence about real language models; it is a place where the
papers' methods run whole on two cores, and where the truth is known. What is put in:

1. A chain is a sum modulo 5 whose operands are digits or names of digits: ``3+zoka+1``. The
   model first recalls what the names stand for, then adds from left to right:
   ``3+4+1: 3+4=2, 2+1=3. \boxed{3} \confidence{0.9}``.
2. Arithmetic is easy to learn and the corpus never errs in it. What a name stands for has to be
   known, and there are many names. The corpus states each with a noise of its own: with that
   probability a random digit instead. So a model knows some names well, some badly and some not
   at all, like facts in a long tail, and a question is as hard as its names. There are too many
   for reinforcement on a few thousand questions to teach them.
3. Six datasets. ``chains`` (1 to 4 steps, none to 3 names) is the only one used in
   reinforcement. ``additions`` (1 to 3 steps, none to 2 names; "Add zoka, 3 and 1.") is easier,
   ``words`` is as hard ("What is zoka plus 3?"), ``long_chains`` (5 or 6 steps, 1 to 4 names)
   harder. ``facts`` asks which letter a name has (A for 0, B for 1 and so on; nothing to add up),
   ``fact_sums`` which letter a sum of 2 or 3 names has. The corpus contains all six forms.
4. The confidence stated in the corpus is overconfident: 1.0 or 0.9, unless its writer
   hesitates, when it is anything from 0.0 to 1.0. It is weakly informed: the writer hesitates
   more often, the noisier the names that were used. In an uninformed corpus the very same
   confidences are dealt out to the completions at random. Some completions state none.
5. The noisier the names, the more often the writer pauses before it answers ("Let me think."),
   which is of no use. (Before the sum, pauses would hide where its operands stand, and models of
   this size learn it far more slowly.) So completions are longer where a model knows less, and
   those that do not end in time have no answer: what is hard costs more, and the base model fails
   the format at times.
6. A larger model that "knows more" is one whose corpus states more names surely
   (:attr:`Preset.name_shares`), besides being larger. No name is noisier in it, so it is better in
   every dataset, as far as it learns its corpus.

What is kept apart:

7. A question belongs to one of four pools (corpus, train, validation, test) by a hash of what
   it asks, so none is in two of them. Sums of the same operands in any order, in digits or in
   words, ask the same and are in the same pool.
7. The names themselves are shared, since they are what is to be known: a name in a question of
   the test split occurs in other chains of the corpus. For ``facts``, where the name is all
   that is asked, the ways of asking differ: each name comes in about four of ten in the corpus.

What is known: :func:`sampler_accuracy` is the accuracy of a model that has learnt the corpus
perfectly (at temperature 0 the best that can be made of the corpus). A trained model
has not; the truth of the world is not the truth of the model.

Only the functions that make tokenizers and models import tokenizers, transformers and torch;
they do so when called, so that questions and truth need neither.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from corea import checks
from corea.tasks.questions import INSTRUCTION, ROUTER_INSTRUCTION, Question

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

DATASETS = ("chains", "additions", "words", "long_chains", "fact_sums", "facts")
SPLITS = ("train", "validation", "test")
ARCHITECTURES = ("qwen2", "llama", "qwen3")
PAD_ID, EOS_ID = 0, 1
VOCABULARY = 333  # bytes and what is merged of them: with so many every word is one token

_PAD, _END = "<|pad|>", "<|end|>"
_STEPS = {  # fewest and most
    "chains": (1, 4),
    "additions": (1, 3),
    "words": (1, 4),
    "long_chains": (5, 6),
    "fact_sums": (1, 2),
}
_NAMES = {  # of names in a chain, fewest and most
    "chains": (0, 3),
    "additions": (0, 2),
    "words": (0, 3),
    "long_chains": (1, 4),
    "fact_sums": (2, 3),
}
_LETTERED = ("fact_sums", "facts")  # answered by a letter
_PAUSE = " Let me think."
_LETTERS = "ABCDEFGHIJ"  # of the digits
_ASKED = (
    *("Which letter is {}", "What letter is {}", "Which letter has {}", "What letter has {}"),
    *("{} has which letter", "{} has what letter", "{} is which letter", "{} is what letter"),
    *("The letter of {} is", "The letter of {} is which"),
)
_FACTS = re.compile("|".join(form.replace("{}", "([a-z]+)") for form in _ASKED))
_POOLS = {"corpus": 40, "train": 30, "validation": 10, "test": 20}  # percent of all questions
_SYLLABLES = tuple(c + v for c, v in product("bdgklmnprstvz", "aeiou"))
_OPERAND = r"(?:[0-9]|[a-z]+)"
_FORMS = {  # how a chain is asked: pattern of the text, and what stands between operands
    "chains": ("{}", "+", "+"),
    "additions": ("Add {}.", ", ", " and "),
    "words": ("What is {}?", " plus ", " plus "),
    "long_chains": ("{}", "+", "+"),
    "fact_sums": ("Which letter is {}?", "+", "+"),
}
Drawn = TypeVar("Drawn")
_PATIENCE = 2000  # draws without a new question after which a level counts as used up


def require_shares(weights: Sequence[float], name: str, length: int) -> None:
    """Refuse what are not ``length`` weights, at least one of them above 0."""
    if not checks.not_negative(weights, name, length).any():
        raise ValueError(f"{name} is {weights!r}; expected at least one above 0")


@dataclass(frozen=True)
class World:
    """What is true in the microworld, and how well its corpus says so.

    ``name_shares`` and ``informed`` change the corpus alone: worlds that differ in nothing else
    have the same questions, answers and splits (and the same levels but for ``facts``).
    """

    modulus: int = 5  # digits are 0 ... modulus - 1; few, so that arithmetic is soon learnt
    names: int = 240  # names to know, each with a digit
    noise_levels: tuple[float, ...] = (0.0, 0.4, 0.6, 0.75, 0.9, 1.0)  # how often it is random
    name_shares: tuple[float, ...] = (0.25, 0.1, 0.1, 0.1, 0.05, 0.4)  # of the names, for each
    hesitation: float = 0.7  # probability to hesitate where a completion is surely wrong
    pausing: float = 0.6  # probability to think (once more) where a completion is surely wrong
    silence: float = 0.2  # share of the completions that state no confidence
    informed: float = 1.0  # share of the completions that keep their own stated confidence
    mixture: tuple[float, ...] = (0.4, 0.1, 0.12, 0.12, 0.1, 0.16)  # share of each dataset
    seed: int = 0  # of what is true, and of which names are noisy

    def __post_init__(self) -> None:
        """Check every field."""
        checks.whole(self.modulus, "modulus", 2, 10)
        checks.whole(self.names, "names", 1, len(_SYLLABLES) ** 2)
        checks.whole(self.seed, "seed", 0, 2**32 - 1)
        for name in ("hesitation", "pausing", "silence", "informed"):
            checks.unit_interval([getattr(self, name)], name)
        checks.unit_interval(self.noise_levels, "noise_levels")
        require_shares(self.mixture, "mixture", len(DATASETS))
        require_shares(self.name_shares, "name_shares", len(self.noise_levels))


@dataclass(frozen=True)
class Preset:
    """A size of model, and the corpus it is pretrained on."""

    hidden_size: int  # width d
    n_layers: int  # transformer blocks
    n_heads: int  # attention heads; d / n_heads is 32, as vLLM on a CPU needs, but for micro
    name_shares: tuple[float, ...] | None = None  # of its corpus; None: as in the world

    @property
    def block_weights(self) -> int:
        """Weights in the matrices of the blocks, 16 L d²; embeddings are left out."""
        return 16 * self.n_layers * self.hidden_size**2


_KNOWS_MORE = (0.55, 0.1, 0.1, 0.05, 0.05, 0.15)
PRESETS = {
    # the same corpus, in order of size: a factor of nearly 100 from first to last
    "micro": Preset(hidden_size=16, n_layers=2, n_heads=1),
    "mini": Preset(hidden_size=32, n_layers=2, n_heads=1),
    "tiny": Preset(hidden_size=32, n_layers=5, n_heads=1),
    "small": Preset(hidden_size=64, n_layers=3, n_heads=2),
    "medium": Preset(hidden_size=96, n_layers=4, n_heads=3),
    "big": Preset(hidden_size=192, n_layers=4, n_heads=6),
    # knows more names, besides being larger than the small one it stands behind
    "large": Preset(hidden_size=128, n_layers=4, n_heads=4, name_shares=_KNOWS_MORE),
}


# Facts: what is true, and how often the corpus gets it wrong


@dataclass(frozen=True)
class Facts:
    """What names stand for, and how noisy each is, as arrays over names."""

    names: tuple[str, ...]
    digit: NDArray[np.int64]
    level: NDArray[np.int64]  # place in the world's noise levels
    noise: NDArray[np.float64]


@cache
def facts_of(world: World) -> Facts:
    """What the names of a world stand for."""
    rng = np.random.default_rng([world.seed, 0])
    n, n_syllables = world.names, len(_SYLLABLES)
    chosen = rng.permutation(n_syllables**2)[:n]
    names = tuple(_SYLLABLES[i // n_syllables] + _SYLLABLES[i % n_syllables] for i in chosen)
    digit = rng.integers(world.modulus, size=n)
    # shares exact up to rounding, in random order
    ends = np.rint(np.cumsum(world.name_shares) / sum(world.name_shares) * n)
    level = rng.permutation(np.searchsorted(ends, np.arange(n), side="right"))
    return Facts(names, digit, level, np.asarray(world.noise_levels)[level])


# Questions


@dataclass(frozen=True)
class _Chain:
    """The sum of these operands, digits or names."""

    operands: tuple[str, ...]

    def __str__(self) -> str:
        return "+".join(self.operands)

    def asked(self, dataset: str) -> str:
        """The text of the question."""
        form, between, last = _FORMS[dataset]
        return form.format(between.join(self.operands[:-1]) + last + self.operands[-1])

    @property
    def names(self) -> list[str]:
        """Names in the order in which they occur; none occurs twice."""
        return [operand for operand in self.operands if not operand.isdigit()]


@dataclass(frozen=True)
class _Fact:
    """A name, and the form in which its letter is asked for."""

    name: str
    form: str

    def __str__(self) -> str:
        return self.form.format(self.name)

    @property
    def names(self) -> list[str]:
        """The one name."""
        return [self.name]


def questions(world: World, dataset: str, split: str, n: int) -> list[Question]:
    """The first n questions of a split; fewer are the beginning of more.

    Chains with every number of names come in turn. A number whose questions are used up is
    passed over.

    Example:
        >>> [first, second] = questions(World(), "chains", "test", 2)
        >>> first.level, second.level, first == questions(World(), "chains", "test", 1)[0]
        (1, 2, True)
    """
    checks.one_of(dataset, "dataset", DATASETS)
    checks.one_of(split, "split", SPLITS)
    checks.whole(n, "n", 1, 10**9)
    rng = np.random.default_rng([world.seed, 1, DATASETS.index(dataset), SPLITS.index(split)])
    fewest, most = _NAMES.get(dataset, (1, 1))

    def draw(count: int) -> tuple[str, tuple[str, str, int]]:
        made = _asked(world, dataset, _draw(world, dataset, split, count, rng))
        return made[0], made

    drawn = take_in_turn(n, range(fewest, most + 1), draw, f"{dataset} ({split})")
    return [
        Question(dataset, f"{split}-{i:05d}", text, gold, "choice", level)
        for i, (text, gold, level) in enumerate(drawn)
    ]


def take_in_turn(
    n: int, counts: Iterable[int], draw: Callable[[int], tuple[Hashable, Drawn]], name: str
) -> list[Drawn]:
    """Different draws, every count in turn; a count that is used up is passed over.

    ``draw`` gives what is drawn for a count, behind the key that tells it from others. Fewer draws
    are the beginning of more.
    """
    left, turn = list(counts), 0
    found: dict[Hashable, Drawn] = {}
    while len(found) < n:
        if not left:
            raise ValueError(f"{name} has {len(found)} questions; {n} were asked for")
        count = left[turn % len(left)]
        for _ in range(_PATIENCE):
            key, drawn = draw(count)
            if key not in found:
                found[key] = drawn
                turn += 1
                break
        else:
            left.remove(count)
    return list(found.values())


def _draw(
    world: World, dataset: str, pool: str, count: int, rng: np.random.Generator
) -> _Chain | _Fact:
    """A question of a pool; a chain with this count of names."""
    while True:
        drawn: _Chain | _Fact
        if dataset == "facts":
            name = facts_of(world).names[rng.integers(world.names)]
            drawn = _Fact(name, _ASKED[rng.integers(len(_ASKED))])
        else:
            fewest, most = _STEPS[dataset]
            steps = int(rng.integers(max(fewest, count - 1), most + 1))
            operands = [str(digit) for digit in rng.integers(world.modulus, size=steps + 1)]
            chosen = rng.choice(world.names, size=count, replace=False)
            places = np.sort(rng.choice(steps + 1, size=count, replace=False))
            for place, name_place in zip(places, chosen, strict=True):
                operands[place] = facts_of(world).names[name_place]
            drawn = _Chain(tuple(operands))
        if _pool(drawn) == pool:
            return drawn


def _pool(drawn: _Chain | _Fact) -> str:
    return pool_of(str(drawn) if isinstance(drawn, _Fact) else "+".join(sorted(drawn.operands)))


def pool_of(asked: str) -> str:
    """The pool of what is asked, by its hash."""
    share = int.from_bytes(hashlib.blake2b(asked.encode(), digest_size=8).digest()) % 100
    for pool, percent in _POOLS.items():
        if share < percent:
            return pool
        share -= percent
    raise AssertionError("the pools' percentages do not add up to 100")


def _asked(world: World, dataset: str, drawn: _Chain | _Fact) -> tuple[str, str, int]:
    """Text, right answer and level."""
    facts = facts_of(world)
    if isinstance(drawn, _Fact):
        place = facts.names.index(drawn.name)
        return f"{drawn}?", _LETTERS[facts.digit[place]], int(facts.level[place]) + 1
    known = {name: int(facts.digit[facts.names.index(name)]) for name in drawn.names}
    gold = _steps(world, drawn, known)[1]
    answer = _LETTERS[gold] if dataset in _LETTERED else str(gold)
    return drawn.asked(dataset), answer, len(known) + 1


def _steps(world: World, chain: _Chain, known: dict[str, int]) -> tuple[list[str], int]:
    """The steps of a chain where names stand for these digits, and where they lead."""
    return add_up([known[o] if o in known else int(o) for o in chain.operands], world.modulus)


def add_up(digits: Sequence[int], modulus: int) -> tuple[list[str], int]:
    """The steps of a sum, from left to right, and where they lead.

    Example:
        >>> add_up([3, 4, 1], 5)
        (['3+4=2', '2+1=3'], 3)
    """
    value, steps = digits[0], []
    for digit in digits[1:]:
        result = (value + digit) % modulus
        steps.append(f"{value}+{digit}={result}")
        value = result
    return steps, value


def _read(world: World, question: Question) -> _Chain | _Fact:
    """What a question asks, from its text."""
    names, text = facts_of(world).names, question.text
    if question.dataset == "facts" and (match := _FACTS.fullmatch(text.removesuffix("?"))):
        (name,) = filter(None, match.groups())
        if name in names:
            form = next(form for form in _ASKED if form.format(name) == text.removesuffix("?"))
            return _Fact(name, form)
    elif question.dataset in _FORMS:
        chain = _Chain(tuple(re.findall(rf"\b(?:[0-9]|{'|'.join(names)})\b", text)))
        unlike = len(set(chain.names)) < len(chain.names)
        if len(chain.operands) > 1 and not unlike and chain.asked(question.dataset) == text:
            return chain
    raise ValueError(
        f"question {question.question_id!r} of {question.dataset!r} reads {question.text!r}; "
        "expected a question of this world"
    )


# Corpus


def corpus(world: World, n: int, seed: int) -> list[dict[str, str]]:
    r"""Questions with written-out completions to pretrain on: noisy, and too sure of themselves.

    With the probability of its noise a name is said to stand for a random digit, all alike, the
    true one among them; the steps, or the letter, then go on from there. With q the product of
    (1 - noise) over the names used, the writer hesitates with probability
    ``world.hesitation`` (1 - q) and states 0.0, 0.1, ... or 1.0, all alike; otherwise 1.0
    (70 %) or 0.9 (30 %). A completion keeps its own stated confidence with probability
    ``world.informed``; the others exchange theirs at random. So an uninformed corpus states
    exactly as many of each confidence as an informed one. A share ``world.silence`` then states
    none. With probability ``world.pausing`` (1 - q) the writer pauses, and again. Questions may
    repeat; a completion begins with a space and has no end-of-text token, which the trainer
    appends.

    Example:
        >>> row = corpus(World(), 1, seed=4)[0]
        >>> row["completion"].startswith(" "), row["completion"].count(r"\confidence{")
        (True, 1)
    """
    checks.whole(n, "n", 1, 10**9)
    checks.whole(seed, "seed", 0, 2**63 - 1)
    rng = np.random.default_rng([world.seed, 2, seed])
    shares = np.asarray(world.mixture) / sum(world.mixture)
    asked, reasoning, stated = [], [], []
    for place in rng.choice(len(DATASETS), size=n, p=shares):
        dataset = DATASETS[place]
        fewest, most = _NAMES.get(dataset, (1, 1))
        drawn = _draw(world, dataset, "corpus", int(rng.integers(fewest, most + 1)), rng)
        text, _, _ = _asked(world, dataset, drawn)
        written, reliability = _write(world, dataset, drawn, rng)
        asked.append(Question(dataset, "", text, "", "choice").prompt)
        reasoning.append(written)
        stated.append(_state(world, reliability, rng))
    silent = rng.random(n) < world.silence
    dealt = np.flatnonzero((rng.random(n) >= world.informed) & ~silent)
    for receiver, giver in zip(dealt, [stated[i] for i in rng.permutation(dealt)], strict=True):
        stated[receiver] = giver
    told = [
        "" if hidden else f" \\confidence{{{confidence}}}"
        for confidence, hidden in zip(stated, silent, strict=True)
    ]
    return [
        {"prompt": prompt, "completion": f" {written}{confidence}"}
        for prompt, written, confidence in zip(asked, reasoning, told, strict=True)
    ]


def _write(
    world: World, dataset: str, drawn: _Chain | _Fact, rng: np.random.Generator
) -> tuple[str, float]:
    """The reasoning with its boxed answer, and the product of (1 - noise) of its names."""
    facts = facts_of(world)
    believed, reliability = {}, 1.0
    for name in drawn.names:
        place = facts.names.index(name)
        noise = float(facts.noise[place])
        believed[name] = int(
            rng.integers(world.modulus) if rng.random() < noise else facts.digit[place]
        )
        reliability *= 1 - noise
    if isinstance(drawn, _Fact):
        value = believed[drawn.name]
        thoughts = str(value)
    else:
        steps, value = _steps(world, drawn, believed)
        recalled = "+".join(str(believed.get(operand, operand)) for operand in drawn.operands)
        thoughts = f"{recalled}: {', '.join(steps)}"
    answer = str(value)
    if dataset in _LETTERED:
        answer = _LETTERS[value]
        thoughts += f", so {answer}"
    pauses = int(rng.geometric(1 - world.pausing * (1 - reliability))) - 1
    return f"{thoughts}.{_PAUSE * pauses} \\boxed{{{answer}}}", reliability


def _state(world: World, reliability: float, rng: np.random.Generator) -> str:
    if rng.random() < world.hesitation * (1 - reliability):
        return f"{rng.integers(11) / 10:.1f}"
    return "1.0" if rng.random() < 0.7 else "0.9"


# Known truth


def sampler_accuracy(world: World, question: Question, temperature: float = 1.0) -> float:
    r"""How often a perfect learner of the corpus answers right when it samples.

    The learner gives every token exactly the probability it has in the corpus. A name of noise
    :math:`\epsilon` then stands for each of the k = 5 digits with probability
    :math:`\epsilon / k`, and for the true one with :math:`1 - \epsilon` more; at temperature T
    these are raised to 1/T and normalised:

    .. math:: p_T(v) = \frac{p(v)^{1/T}}{\sum_u p(u)^{1/T}}

    The probability of every digit is carried from step to step, so that a chain that comes to
    the right value by a second error counts as right, as it does in practice.

    It is not the accuracy of a trained model, which has learnt the corpus more or less well, is
    cut where it pauses too often, and after reinforcement is no longer meant to follow
    the corpus. It is a graded difficulty that was put into the world.

    Example:
        A world of sure names, and one in which half of what is said of them is at random:

        >>> world = World()
        >>> question = questions(world, "chains", "test", 2)[1]  # of one name
        >>> sampler_accuracy(World(name_shares=(1.0,), noise_levels=(0.0,)), question)
        1.0
        >>> even = World(name_shares=(1.0,), noise_levels=(0.5,))
        >>> question = questions(even, "facts", "test", 1)[0]
        >>> round(sampler_accuracy(even, question), 3)  # 0.5 + 0.5 / 5
        0.6
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature!r}; expected a number from 0")
    facts, drawn = facts_of(world), _read(world, question)
    parts = []
    for operand in drawn.names if isinstance(drawn, _Fact) else drawn.operands:
        if operand.isdigit():
            parts.append(np.eye(world.modulus)[int(operand)])
        else:
            place = facts.names.index(operand)
            noise, digit = float(facts.noise[place]), int(facts.digit[place])
            parts.append(sharpened(noise, digit, world.modulus, temperature))
    lettered = question.dataset in _LETTERED
    gold = _LETTERS.index(question.gold) if lettered else int(question.gold)
    return float(distribution_of_sum(parts)[gold])


def distribution_of_sum(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """How a sum modulo k is distributed whose parts are independent.

    Example:
        >>> distribution_of_sum([np.array([0.0, 1.0]), np.array([0.25, 0.75])]).tolist()
        [0.75, 0.25]
    """
    value, *others = parts
    for part in others:
        after = np.zeros(len(value))
        for left, right in product(range(len(value)), repeat=2):
            after[(left + right) % len(value)] += value[left] * part[right]
        value = after
    return value


def sharpened(noise: float, true: int, k: int, temperature: float) -> NDArray[np.float64]:
    """Distribution over k outcomes at a temperature; divided by the largest first."""
    p = np.full(k, noise / k)
    p[true] += 1 - noise
    p /= p.max()
    p = (p == 1).astype(float) if temperature == 0 else p ** (1 / temperature)
    return np.asarray(p / p.sum())


# Tokenizer and models


def build_tokenizer(
    world: World | None = None, vocab_size: int = VOCABULARY
) -> PreTrainedTokenizerFast:
    r"""A byte-level BPE tokenizer for the microworld, the same every time.

    Any text can be encoded and comes back unchanged. Every digit is a token of its own, and a
    word takes in the space before it, so that ``\confidence{0.9}`` is always ``\confidence{``,
    ``0``, ``.``, ``9``, ``}``. Every name is one token. So are the instruction and the router's:
    the text stays the paper's, and a prompt has about 15 tokens instead of 60. The names come on
    top of ``vocab_size``; padding is on the left, as generation needs.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.tokenize(r" \confidence{0.9}")[-4:]
        ['0', '.', '9', '}']
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    checks.whole(vocab_size, "vocab_size", 261, 65_536)
    tokenizer = Tokenizer(models.BPE())
    pieces = r"\d| ?\p{L}+|\\\p{L}+\{|[^\s\p{L}\d\\]+(?: (?!\p{L}))?|\s|."
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    world = World() if world is None else world
    whole = [
        AddedToken(text, normalized=False, special=False)
        for text in (INSTRUCTION, ROUTER_INSTRUCTION)
    ]
    # a name inside another word is none: "minu" in "minus"
    whole += [
        AddedToken(name, normalized=False, special=False, single_word=True)
        for name in facts_of(world).names
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_PAD, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # names are tokens already; letters of other words are what is left to merge
    names = re.compile("|".join(facts_of(world).names))
    rows = corpus(world, 2000, seed=0)
    texts = [row["prompt"].removesuffix(INSTRUCTION) for row in rows]
    texts += [row["completion"] for row in rows]
    tokenizer.train_from_iterator((names.sub("", text) for text in texts), trainer)
    tokenizer.add_tokens(whole)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def model_config(
    architecture: str, hidden_size: int, n_layers: int, n_heads: int, vocab_size: int
) -> PretrainedConfig:
    r"""A config of transformers for a model of the microworld.

    Blocks have a feed-forward width of 4 d; embeddings are not tied; 512 positions. Weights
    start with a standard deviation of :math:`0.7 / \sqrt{d}`: with the usual 0.02, meant for
    widths in the thousands, so small a model learns nothing in hundreds of steps.

    Example:
        >>> config = model_config("qwen2", 64, 3, 2, 288)
        >>> config.initializer_range, config.intermediate_size
        (0.0875, 256)
    """
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    checks.one_of(architecture, "architecture", ARCHITECTURES)
    checks.whole(n_layers, "n_layers", 1, 1000)
    checks.whole(n_heads, "n_heads", 1, 1000)
    checks.whole(vocab_size, "vocab_size", EOS_ID + 1, 10**7)
    if hidden_size < 1 or hidden_size % (2 * n_heads):
        raise ValueError(
            f"hidden_size is {hidden_size!r}; expected a multiple of 2 * n_heads = {2 * n_heads}"
        )
    configs: dict[str, Any] = {"qwen2": Qwen2Config, "llama": LlamaConfig, "qwen3": Qwen3Config}
    config: PretrainedConfig = configs[architecture](
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        head_dim=hidden_size // n_heads,
        max_position_embeddings=512,
        initializer_range=0.7 / math.sqrt(hidden_size),
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=None,
    )
    return config


def new_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A causal language model with random weights, the same for the same seed; in 32-bit floats."""
    import torch
    from transformers import AutoModelForCausalLM

    checks.whole(seed, "seed", 0, 2**63 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model
