r"""Rewards of RLCC: correctness, confidence and format.

Paper A, section 3.2, equations (1) to (6). The formulas are lost in our text; they are
reconstructed from its words. A confidence reward compares a stated confidence :math:`c` with
a target :math:`t`, which is the accuracy of the rollout's group (group level) or the
correctness of the rollout itself (sample level). With :math:`p` the chance that an answer to
the question is right, "optimum" below is the :math:`c` with the largest expected reward.

Choices, where the text leaves them open:

1. Equation (1) is the plain sum of three parts. The weights are parameters, 1 by default.
2. Equations (2) and (3) are :math:`-|c-p|` and :math:`-(c-p)^2`, without a factor, so that
   both lie in [-1, 0].
3. Equation (4) is :math:`-\mathrm{KL}(p \,\|\, c)`. Only this direction has a "constant term
   to remove": the entropy of :math:`p`, which no confidence changes.
4. Equation (5) clips :math:`c` to :math:`[\varepsilon, 1-\varepsilon]`, leaves the entropy
   out, and maps what remains linearly onto exactly [-1, 0].
5. :math:`\varepsilon` is not known; 0.01 is the default here. All confidences up to it are
   one to the reward, so a larger value costs resolution at the ends.
6. Equation (6): a rollout's own correctness is part of the accuracy of its group.
7. A confidence that is missing (NaN or None) or outside [0, 1] gets -1, the lowest value of every
   confidence reward at any target. It is never clipped or taken for 0.
8. Sample-level rewards are the same functions with the own correctness as the target;
   ``brier`` is the paper's sample_L2.
9. The format reward is the mean of three parts, each 0 or 1: an answer, a confidence,
   consistent language. :mod:`corea.tasks.parsing` reads answer and confidence, as it does in
   evaluation; by its rule 6 a confidence stated before the answer is none, so that the
   order the prompt asks for needs no part of its own.
10. "Consistent language usage" means here that every letter is of the scripts that the
    questions are written in (Latin, with Greek for mathematics); digits, signs and
    mathematical alphabets are of no script. It catches answers that drift into Chinese,
    and cannot tell English from French.

All six confidence rewards take a confidence in [0, 1] (choice 7 says what else is worth) and a
target in [0, 1], of shapes that broadcast, and give rewards in [-1, 0] of the broadcast shape. A
target that is missing or out of range, an own correctness other than 0 and 1, and an
:math:`\varepsilon` outside (0, 1/2) are a ValueError; what is not numeric is a TypeError.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from corea import checks
from corea.checks import Floats
from corea.tasks.parsing import ParsedCompletion

EPSILON = 0.01
"""The default clipping factor of the KL rewards (choice 5)."""

WORST = -1.0
"""The reward of a confidence that is missing or outside [0, 1] (choice 7)."""

SCRIPTS = ("LATIN", "GREEK")
"""Scripts of the questions' letters: first words of Unicode character names (choice 10)."""

# Letterlike Symbols, such as the double-struck R, and Mathematical Alphanumeric Symbols
_NOTATION = (range(0x2100, 0x2150), range(0x1D400, 0x1D800))


def l1(confidence: ArrayLike, target: ArrayLike) -> Floats:
    r"""Negative distance of the confidence from the target.

    .. math:: R = -|c - t|

    Range: [-1, 0]. Optimum: the median of the target. For a group accuracy :math:`k/G` that
    is one of the :math:`G+1` values :math:`k/G`, near :math:`p` but rarely :math:`p` itself
    (with :math:`G = 2`: 0 up to :math:`p = 1 - \sqrt{1/2} = 0.293`, then 1/2, and 1 from
    0.707); where the chance of a group accuracy of at most :math:`k/G` is exactly 1/2, every
    report from there to :math:`(k+1)/G` is optimal.

    Source: paper A, section 3.2, equation (2), reconstructed (choice 2).

    Example:
        >>> l1([0.75, 0.25, float("nan")], [0.5, 1.0, 0.5]).tolist()
        [-0.25, -0.75, -1.0]
    """
    c, t, stated = _checked(confidence, target)
    return np.where(stated, -np.abs(c - t), WORST)


def l2(confidence: ArrayLike, target: ArrayLike) -> Floats:
    r"""Negative squared distance of the confidence from the target.

    .. math:: R = -(c - t)^2

    Range: [-1, 0]. Optimum: the mean of the target. For a group accuracy that is :math:`p`,
    at every group size.

    Source: paper A, section 3.2, equation (3), reconstructed (choice 2).

    Example:
        >>> l2([0.75, 0.25, float("nan")], [0.5, 1.0, 0.5]).tolist()
        [-0.0625, -0.5625, -1.0]
    """
    c, t, stated = _checked(confidence, target)
    return np.where(stated, -np.square(c - t), WORST)


def kl(confidence: ArrayLike, target: ArrayLike, epsilon: float = EPSILON) -> Floats:
    r"""Negative KL divergence of the confidence from the target, clipped and normalised.

    .. math:: R = \frac{t \log \tilde c + (1 - t) \log (1 - \tilde c) - \log (1 - \varepsilon)}
        {\log (1 - \varepsilon) - \log \varepsilon},
        \qquad \tilde c = \min(\max(c, \varepsilon), 1 - \varepsilon)

    Range: [-1, 0]: 0 for a confidence of :math:`t` where :math:`t` is 0 or 1, -1 for
    :math:`1 - t`. Between, the entropy that was left out keeps it below 0 for every
    confidence. Optimum: the mean of the target, clipped to
    :math:`[\varepsilon, 1 - \varepsilon]`. For a group accuracy that is :math:`p` at every
    group size, and every report up to :math:`\varepsilon` where :math:`p` is not above it
    (the same at the other end).

    Source: paper A, section 3.2, equations (4) and (5), reconstructed (choices 3 to 5).

    Example:
        With an epsilon of 0.1 the divisor is log 9. A confidence of 1/2 loses log(0.9 / 0.5):

        >>> kl([0.0, 0.5, 1.0, float("nan")], [0, 1, 0, 1], epsilon=0.1).round(4).tolist()
        [0.0, -0.2675, -1.0, -1.0]
    """
    if not 0 < epsilon < 0.5:
        raise ValueError(f"epsilon is {epsilon}; expected a number above 0 and below 0.5")
    c, t, stated = _checked(confidence, target)
    best, worst = np.log(1 - epsilon), np.log(epsilon)
    right, wrong = (np.log(np.clip(chance, epsilon, 1 - epsilon)) for chance in (c, 1 - c))
    # rounding may leave the ends of the range by a last digit
    reward = np.clip((t * right + (1 - t) * wrong - best) / (best - worst), -1, 0)
    return np.where(stated, reward, WORST)


def sample_l1(confidence: ArrayLike, correct: ArrayLike) -> Floats:
    r"""Negative distance of the confidence from the rollout's own correctness: :func:`l1`.

    .. math:: R = -|c - y|

    Range: [-1, 0]. Optimum: 0 for :math:`p < 1/2`, 1 for :math:`p > 1/2`, and every report
    alike at 1/2: the expected reward is linear in :math:`c`, so this reward is not proper.

    Source: paper A, section 3.2, "sample_L1" (choice 8).

    Example:
        >>> sample_l1([0.75, 0.25, float("nan")], [True, True, False]).tolist()
        [-0.25, -0.75, -1.0]
    """
    return l1(confidence, _correctness(correct))


def brier(confidence: ArrayLike, correct: ArrayLike) -> Floats:
    r"""Negative Brier score, :func:`l2` from the rollout's own correctness.

    .. math:: R = -(c - y)^2

    Range: [-1, 0]. Optimum: :math:`p`, and it alone.

    Source: paper A, section 3.2, "sample_L2", the calibration reward of Damani et al. (2025);
    Brier (1950) (choice 8).

    Example:
        >>> brier([0.75, 0.25, float("nan")], [True, True, False]).tolist()
        [-0.0625, -0.5625, -1.0]
    """
    return l2(confidence, _correctness(correct))


def sample_kl(confidence: ArrayLike, correct: ArrayLike, epsilon: float = EPSILON) -> Floats:
    r"""Log score of the confidence, :func:`kl` from the rollout's own correctness.

    .. math:: R = \frac{y \log \tilde c + (1 - y) \log (1 - \tilde c) - \log (1 - \varepsilon)}
        {\log (1 - \varepsilon) - \log \varepsilon}

    Range: [-1, 0]. Optimum: :math:`p` where it lies in :math:`[\varepsilon, 1-\varepsilon]`;
    where it does not, every report beyond that end of the interval.

    Source: paper A, section 3.2, "sample_KL" (choices 3 to 5 and 8).

    Example:
        >>> sample_kl([1.0, 0.5, 0.0], [True, False, True], epsilon=0.1).round(4).tolist()
        [0.0, -0.2675, -1.0]
    """
    return kl(confidence, _correctness(correct), epsilon)


def group_accuracy(correct: ArrayLike, group_size: int) -> Floats:
    r"""Accuracy of each rollout's group, its own answer included.

    .. math:: \hat p = \frac1G \sum_{i=1}^{G} y_i

    Source: paper A, section 3.2, equation (6), reconstructed (choice 6).

    Args:
        correct: Boolean or 0/1, shape (n,); rows ``g * G`` to ``g * G + G - 1`` are a group.
        group_size: Rollouts of one prompt, G, from 1.

    Returns:
        The accuracy, the same for all rollouts of a group, shape (n,).

    Raises:
        ValueError: If ``correct`` holds anything but 0 and 1, is not one-dimensional, or its
            length is not a multiple of the group size.
        TypeError: If an array is not numeric.

    Example:
        >>> group_accuracy([1, 0, 1, 1, 0, 0], group_size=3).round(3).tolist()
        [0.667, 0.667, 0.667, 0.333, 0.333, 0.333]
    """
    right = checks.verdicts(correct)
    if group_size < 1 or len(right) % group_size:
        raise ValueError(
            f"{len(right)} rollouts are no whole number of groups of {group_size}: the group "
            "accuracy needs every rollout of a prompt, side by side"
        )
    return np.repeat(right.reshape(-1, group_size).mean(axis=1), group_size)


def _no_reward(confidence: ArrayLike, target: ArrayLike) -> Floats:
    return np.zeros(np.broadcast_shapes(np.shape(confidence), np.shape(target)))


class ConfidenceReward(NamedTuple):
    """A confidence reward: its function, its target, and whether it takes an epsilon.

    The target is the accuracy of the ``"group"``, or the correctness of the ``"sample"`` itself.
    """

    function: Callable[..., Floats]
    target: Literal["group", "sample"]
    clipped: bool = False

    def __call__(
        self, confidence: ArrayLike, target: ArrayLike, epsilon: float = EPSILON
    ) -> Floats:
        """Rewards of confidences at targets; epsilon is for the clipped ones alone."""
        options = {"epsilon": epsilon} if self.clipped else {}
        return self.function(confidence, target, **options)


CONFIDENCE_REWARDS: Mapping[str, ConfidenceReward] = {
    "none": ConfidenceReward(_no_reward, "sample"),
    "l1": ConfidenceReward(l1, "group"),
    "sample_l1": ConfidenceReward(sample_l1, "sample"),
    "l2": ConfidenceReward(l2, "group"),
    "brier": ConfidenceReward(brier, "sample"),
    "kl": ConfidenceReward(kl, "group", clipped=True),
    "sample_kl": ConfidenceReward(sample_kl, "sample", clipped=True),
}
"""The confidence rewards of paper A's ablation by name; ``none`` is RLVR, 0 throughout."""


def confidence_reward_of(name: str) -> ConfidenceReward:
    """The entry of :data:`CONFIDENCE_REWARDS`; an unknown name is refused with those there are."""
    if name not in CONFIDENCE_REWARDS:
        known = ", ".join(CONFIDENCE_REWARDS)
        raise ValueError(f"no confidence reward is called {name!r}; expected one of {known}")
    return CONFIDENCE_REWARDS[name]


def confidence_reward(
    name: str,
    confidence: ArrayLike,
    correct: ArrayLike,
    group_size: int,
    *,
    epsilon: float = EPSILON,
) -> Floats:
    r"""Confidence reward of every rollout of a batch of whole groups.

    The target is :func:`group_accuracy` for ``l1``, ``l2`` and ``kl``, and the own correctness
    for ``sample_l1``, ``brier`` and ``sample_kl``.

    Source: paper A, section 3.2.

    Args:
        name: A key of :data:`CONFIDENCE_REWARDS`.
        confidence: Shape (n,); NaN or outside [0, 1] is worth :data:`WORST` (but 0 with
            ``none``, where everything is).
        correct: Boolean or 0/1, shape (n,); rows ``g * G`` to ``g * G + G - 1`` are a group.
        group_size: Rollouts of one prompt, G, from 1.
        epsilon: Clipping factor of the KL rewards, above 0 and below 1/2.

    Returns:
        The rewards in [-1, 0], shape (n,).

    Raises:
        ValueError: If the name is unknown, shapes differ, ``correct`` holds anything but 0
            and 1, or its length is not a multiple of the group size.
        TypeError: If an array is not numeric.

    Example:
        One group of two, one of them right: both are compared with 1/2, or each with itself.

        >>> confidence_reward("l1", [0.75, 0.25], [True, False], group_size=2).tolist()
        [-0.25, -0.25]
        >>> confidence_reward("brier", [0.75, 0.25], [True, False], group_size=2).tolist()
        [-0.0625, -0.0625]
        >>> confidence_reward("brier", [0.25, 0.75], [True, False], group_size=2).tolist()
        [-0.5625, -0.5625]
    """
    reward = confidence_reward_of(name)
    stated = checks.numbers(confidence, "confidence")
    accuracy = group_accuracy(correct, group_size)
    checks.same_length(confidence=stated, correct=accuracy)
    return reward(stated, accuracy if reward.target == "group" else correct, epsilon)


def format_reward(parsed: ParsedCompletion, text: str) -> float:
    r"""Share of the three things asked of a completion's form that it has: 0, 1/3, 2/3 or 1.

    1. An answer: the last ``\boxed{}`` can be read and is not empty.
    2. A confidence: the last ``\confidence{}`` can be read and comes after that box.
    3. Consistent language: all letters are of :data:`SCRIPTS` (see :func:`one_language`).

    Source: paper A, section 3.2, below equation (1) (choices 9 and 10).

    Args:
        parsed: What :func:`corea.tasks.parsing.parse_completion` reads in the text.
        text: The completion, of any length; the time taken is linear in it.

    Returns:
        The reward.

    Example:
        >>> from corea.tasks.parsing import parse_completion
        >>> texts = r"\boxed{4} \confidence{0.9}", r"\confidence{0.9} \boxed{4}", "四"
        >>> [round(format_reward(parse_completion(text), text), 3) for text in texts]
        [1.0, 0.667, 0.0]
    """
    return sum((parsed.answer is not None, parsed.confidence is not None, one_language(text))) / 3


def one_language(text: str) -> bool:
    """Whether all letters of a text are of :data:`SCRIPTS`; true of a text without letters.

    Letters are told by their Unicode category and their script by the first word of their
    name, after compatibility decomposition (a full-width ``Ａ`` is Latin). Digits, signs,
    modifier letters and the mathematical alphabets are of no script.

    Source: paper A, section 3.2, "consistent language usage" (choice 10).

    Example:
        >>> one_language("Since α² = ½, the answer is ℝ."), one_language("So 答案 is 4.")
        (True, False)
    """
    return text.isascii() or all(
        _script(character) in SCRIPTS for character in set(text) if _has_script(character)
    )


def _checked(confidence: ArrayLike, target: ArrayLike) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Confidences (0 where there is none), targets, and where there is a confidence."""
    c, t = _numbers(confidence, "confidence"), _numbers(target, "target", boolean=True)
    if (bad := np.flatnonzero(~((t >= 0) & (t <= 1)))).size:
        raise ValueError(f"target: row {bad[0]} is {t.flat[bad[0]]}; expected a number in [0, 1]")
    stated = (c >= 0) & (c <= 1)
    return np.where(stated, c, 0), t, stated


def _correctness(correct: ArrayLike) -> Floats:
    right = _numbers(correct, "correct", boolean=True)
    return checks.verdicts(right.ravel()).reshape(right.shape)


def _numbers(values: ArrayLike, name: str, *, boolean: bool = False) -> Floats:
    """As :func:`corea.checks.numbers`, of any shape: rewards broadcast."""
    array = np.asarray(values)
    flat = checks.numbers(array.ravel(), name, boolean=boolean)
    return flat.reshape(array.shape).astype(np.float64, copy=False)


def _has_script(character: str) -> bool:
    return unicodedata.category(character) in {"Lu", "Ll", "Lt", "Lo"} and not any(
        ord(character) in block for block in _NOTATION
    )


def _script(character: str) -> str:
    plain = unicodedata.normalize("NFKC", character)[0]
    return unicodedata.name(plain, "").partition(" ")[0]
