r"""Confidence that is learnt beside a model: the probe and the router, paper A's two baselines.

The probe reads the pooled last-layer state of a completion and says how likely its answer is
right. The router is a language model that reads the question alone and says how likely the
small model would answer it. Choices of our own, where the paper leaves them open or ours differ:

1. The learning rate of the probe is lost in the text. It is a parameter; 0.0001 was the better of
   that and 0.001 for the paper's layers on microworld models. Narrow layers want more.
2. The paper trains it with AdamW. Here it is Adam with a squared penalty on the weights
   (scikit-learn's), which differs from AdamW in how the penalty is scaled; no torch is needed.
3. States are standardised with the mean and deviation of the training rows; the dimensions of a
   state differ in scale by orders of magnitude.
4. The split of 9:1 is by question: completions of one question are all on one side, so that the
   held-out loss is that on new questions.
5. "Until the loss plateaus on the evaluation dataset": all epochs are run, and the weights of the
   epoch with the lowest held-out loss are kept.
6. The router is trained to write the share of the small model's answers that were right, k/8 with
   eight of them, with three decimals, such as ``0.250``, and nothing else; the paper does not say
   how it is written. All have the same length, so that batches of about one length hold all.
7. The router's probability is what it writes, read as a stated confidence is
   (:mod:`corea.tasks.parsing`), at temperature 0: "the router generates a probability score". Its
   expected value over the possible shares is given beside it, as the counterpart of the expected
   verbalized confidence; what it writes is the default, since it is the paper's.
8. The router has a cost of its own, that of its prompt and of what it writes (paper A, section
   4.3), so both are counted. For the expected value it also reads the other shares, a few tokens
   each, which are not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea import checks
from corea.checks import Floats
from corea.confidence import expectation_on_grid
from corea.engines.base import Sampling
from corea.engines.prompts import chat_prompt
from corea.engines.transformers_engine import TransformersEngine, candidate_logprobs
from corea.tasks.parsing import parse_completion
from corea.tasks.questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROUTER_TOKENS = 16  # more than any probability needs, however it is split into tokens


# --- probe ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is trained; the paper's values."""

    hidden_sizes: tuple[int, ...] = (2048, 1024)
    learning_rate: float = 1e-4  # of Adam
    batch: int = 32  # rows a step
    epochs: int = 20  # passes over the training rows
    held_out_share: float = 0.1  # of the questions, to choose the epoch
    weight_penalty: float = 1e-4  # of the squared weights
    seed: int = 0  # of the split, the first weights and the order of rows

    def __post_init__(self) -> None:
        """Check the values."""
        counts = {"batch": self.batch, "epochs": self.epochs}
        counts |= {f"hidden_sizes[{i}]": size for i, size in enumerate(self.hidden_sizes)}
        for name, count in counts.items():
            checks.whole(count, name, 1)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate!r}; expected more than 0")
        if not 0 < self.held_out_share < 1:
            raise ValueError(
                f"held_out_share is {self.held_out_share!r}; expected a number between 0 and 1"
            )
        if not self.weight_penalty >= 0:
            raise ValueError(f"weight_penalty is {self.weight_penalty!r}; expected 0 or more")


@dataclass(frozen=True, eq=False)
class Probe:
    r"""A multi-layer perceptron on pooled states.

    .. math:: p = \sigma(W_L \, r(W_{L-1} \cdots r(W_1 z + b_1) \cdots + b_{L-1}) + b_L), \qquad
        z = (h - \mu) / s

    with :math:`r(x) = \max(x, 0)` and :math:`\sigma(x) = 1 / (1 + e^{-x})`.

    Source: paper A, appendix A.1.
    """

    mean: NDArray[np.float32]  # mu, shape (d,)
    scale: NDArray[np.float32]  # s, shape (d,)
    weights: tuple[NDArray[np.float32], ...]  # of layers, (d, m_1), (m_1, m_2), ..., (m_{L-1}, 1)
    biases: tuple[NDArray[np.float32], ...]  # of layers, (m_1,), ..., (1,)

    def predict(self, states: ArrayLike) -> Floats:
        """Probability that each answer is right, shape (n,), from pooled states of shape (n, d).

        Example:
            >>> one = np.ones(1, np.float32)
            >>> probe = Probe(one, 2 * one, (one[:, None],), (0 * one,))
            >>> probe.predict([[1.0], [3.0]]).round(3).tolist()  # 1 / (1 + 1/e)
            [0.5, 0.731]
        """
        activation = (_states(states, len(self.mean)) - self.mean) / self.scale
        for layer, (weights, biases) in enumerate(zip(self.weights, self.biases, strict=True)):
            activation = activation @ weights + biases
            if layer < len(self.weights) - 1:
                activation = np.maximum(activation, 0)
        return _sigmoid(activation[:, 0].astype(np.float64))

    def save(self, path: str | Path) -> None:
        """Write the probe as safetensors, all or nothing."""
        from safetensors.numpy import save_file

        path = Path(path)
        tensors = {"mean": self.mean, "scale": self.scale}
        for i, (weights, biases) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors |= {f"weights.{i}": weights, f"biases.{i}": biases}
        partial = path.with_name(path.name + ".partial")
        save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Probe:
        """Read a probe; a file that is damaged or holds something else is named and refused."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = Path(path)
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path.name}: not a complete safetensors file ({error})") from None
        n_layers = (len(tensors) - 2) // 2
        names = ["mean", "scale"]
        names += [f"{kind}.{i}" for i in range(n_layers) for kind in ("weights", "biases")]
        if n_layers < 1 or set(names) != set(tensors):
            raise ValueError(f"{path.name}: found {sorted(tensors)}; expected those of a probe")
        return cls(
            tensors["mean"],
            tensors["scale"],
            tuple(tensors[f"weights.{i}"] for i in range(n_layers)),
            tuple(tensors[f"biases.{i}"] for i in range(n_layers)),
        )


def train_probe(
    states: ArrayLike,
    correct: ArrayLike,
    question_ids: Sequence[Hashable],
    settings: ProbeSettings | None = None,
) -> tuple[Probe, pd.DataFrame]:
    """Train a probe to tell right answers from wrong ones, and give its learning curve.

    A row of the curve is an epoch (from 1), its losses mean cross-entropies in nats.

    Source: paper A, appendix A.1; choices 1 to 5 of this module.
    """
    from sklearn.neural_network import MLPClassifier

    settings = settings or ProbeSettings()
    inputs, targets = _states(states), checks.verdicts(correct).astype(np.int64)
    asked = np.arange(len(question_ids))  # identifiers may be tuples
    checks.same_length(states=inputs, correct=targets, question_ids=asked)
    rng = np.random.default_rng(settings.seed)
    training, held_out = _split(question_ids, settings.held_out_share, rng)

    mean = inputs[training].mean(axis=0)
    deviation = inputs[training].std(axis=0)
    scale = np.where(deviation > 0, deviation, 1).astype(np.float32)
    standard = (inputs - mean) / scale
    network = MLPClassifier(
        settings.hidden_sizes,
        alpha=settings.weight_penalty,
        batch_size=min(settings.batch, len(training)),
        learning_rate_init=settings.learning_rate,
        random_state=settings.seed,
        shuffle=False,  # one seed would give each epoch the same order; they are shuffled here
    )
    kept: Probe | None = None
    rows: list[dict[str, float]] = []
    lowest = np.inf
    for epoch in range(1, settings.epochs + 1):
        order = rng.permutation(training)
        network.partial_fit(standard[order], targets[order], classes=[0, 1])
        probe = Probe(mean, scale, _copies(network.coefs_), _copies(network.intercepts_))
        losses = [
            _cross_entropy(probe.predict(inputs[side]), targets[side])
            for side in (training, held_out)
        ]
        rows.append({"epoch": epoch, "training_loss": losses[0], "held_out_loss": losses[1]})
        if losses[1] < lowest:
            kept, lowest = probe, losses[1]
    if kept is None:
        raise FloatingPointError("the held-out loss is not a finite number in any epoch")
    curve = pd.DataFrame(rows)
    first_lowest = curve["held_out_loss"].idxmin()
    return kept, curve.assign(kept=curve.index == first_lowest)


def _split(
    question_ids: Sequence[Hashable], held_out_share: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the training questions and of the held-out ones; at least one question each."""
    codes, questions = pd.factorize(pd.Series(list(question_ids), dtype=object))
    if len(questions) < 2:
        raise ValueError(f"{len(questions)} question(s); expected two or more, to hold one out")
    n_held_out = min(max(1, round(held_out_share * len(questions))), len(questions) - 1)
    is_held_out = np.zeros(len(questions), dtype=bool)
    is_held_out[rng.permutation(len(questions))[:n_held_out]] = True
    return np.flatnonzero(~is_held_out[codes]), np.flatnonzero(is_held_out[codes])


def _copies(arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[np.float32], ...]:
    return tuple(array.astype(np.float32) for array in arrays)


def _sigmoid(x: Floats) -> Floats:
    return (1 + np.tanh(x / 2)) / 2  # of a large -x, the exponential would overflow


def _cross_entropy(probability: Floats, target: NDArray[np.int64]) -> float:
    right = np.where(target == 1, probability, 1 - probability)
    return float(-np.log(np.maximum(right, 1e-12)).mean())


def _states(states: ArrayLike, d: int | None = None) -> NDArray[np.float32]:
    array = np.asarray(states, dtype=np.float32)
    if array.ndim != 2 or d not in (None, array.shape[1]):
        expected = "(n, d)" if d is None else f"(n, {d})"
        raise ValueError(f"states have shape {array.shape}; expected {expected}")
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).all(axis=1)))
        raise ValueError(f"states[{row}] is not finite")
    return array


# --- router ---------------------------------------------------------------------------------------


def router_rows(questions: Sequence[Question], table: pd.DataFrame) -> list[dict[str, str]]:
    r"""What a router is trained on: each question, and how often the small model was right.

    Source: paper A, section 4.2 and appendix A.2; choice 6 of this module.

    ``table`` holds the small model's records, as many samples of each question (the paper: 8).

    Example:
        >>> question = Question("chains", "7", "9-1", "8", "choice")
        >>> records = pd.DataFrame({"dataset": "chains", "question_id": "7", "system": "small",
        ...     "correct": [True, False, True, True]})
        >>> router_rows([question], records)[0]["completion"]
        '0.750'
    """
    if len(systems := table["system"].unique()) != 1:
        raise ValueError(f"the records are of {list(systems)}; expected those of one system")
    answers = table.groupby(["dataset", "question_id"])["correct"]
    shares, counts = answers.mean().to_dict(), answers.size().to_dict()
    rows = []
    for i, question in enumerate(questions):
        name = (question.dataset, question.question_id)
        if counts.get(name, 0) != max(counts.values()):
            raise ValueError(
                f"questions[{i}], {name}, has {counts.get(name, 0)} records; expected "
                f"{max(counts.values())} as the others"
            )
        rows.append({"prompt": question.router_prompt, "completion": _share_text(shares[name])})
    return rows


def prompted_rows(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], table: pd.DataFrame
) -> list[dict[str, str]]:
    """The rows of :func:`router_rows`, their prompts in the chat template where there is one."""
    return [
        row | {"prompt": chat_prompt(tokenizer, row["prompt"])}
        for row in router_rows(questions, table)
    ]


def route(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    n_answers: int = 8,
    batch_size: int = 64,
) -> pd.DataFrame:
    r"""Ask a router how likely the small model answers each question.

    The expected value is :math:`\sum_k v_k p_k / \sum_k p_k` over the shares
    :math:`v_k = k / n`, :math:`p_k` being the probability with which the router writes the share
    and then ends; n answers to each question are what the router was trained on. ``router`` is
    the probability that it writes, NaN where it cannot be read, ``router_mass`` that of all shares.

    Source: paper A, section 4.2; choices 7 and 8 of this module.
    """
    checks.whole(n_answers, "n_answers", 1, 500)
    prompts = [chat_prompt(tokenizer, question.router_prompt) for question in questions]
    engine = TransformersEngine(model, tokenizer, batch_size)
    written = engine.generate(prompts, Sampling(0.0, _ROUTER_TOKENS))
    shares = [k / n_answers for k in range(n_answers + 1)]
    logprobs = candidate_logprobs(
        model,
        tokenizer,
        prompts,
        [""] * len(prompts),
        [_share_text(share) + str(tokenizer.eos_token) for share in shares],
        batch_size=batch_size,
    )
    expected, mass = expectation_on_grid(logprobs, shares)
    return pd.DataFrame(
        {
            "dataset": [question.dataset for question in questions],
            "question_id": [question.question_id for question in questions],
            "router": [_probability(rollout.completion) for (rollout,) in written],
            "router_expected": expected,
            "router_mass": mass,
            "router_prompt_tokens": [rollout.prompt_tokens for (rollout,) in written],
            "router_completion_tokens": [rollout.completion_tokens for (rollout,) in written],
        }
    )


def _share_text(share: float) -> str:
    return f"{share:.3f}"


def _probability(text: str) -> float:
    """The number in [0, 1] that a text is, else NaN."""
    if any(sign in text for sign in "\\{}"):
        return float("nan")
    stated = parse_completion(rf"\confidence{{{text}}}").confidence
    return float("nan") if stated is None else stated
