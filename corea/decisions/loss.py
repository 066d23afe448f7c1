r"""The calibration-aware loss of a decision, and the confidence that it asks for.

Paper B trains the token that decides by a loss of its own (section 5). Let the decision fall on
option :math:`d` of :math:`K`, which is right (:math:`y = 1`) or wrong (:math:`y = 0`), and let
:math:`p` be the model's probabilities over the full vocabulary. Three losses of one decision:

- ``"uniform"``, the paper's: :math:`-\log p_d` if right, and else
  :math:`-\frac1K \sum_c \log p_c`;
- ``"others"``, ours: the same, but after a wrong decision the mean over the K - 1 other options;
- ``"log_score"``, ours: :math:`-[y \log p_d + (1 - y) \log(1 - p_d)]`. It does not say which
  tokens get :math:`1 - p_d`: they share it as they do already.

What a loss asks for depends on how decisions are made. Let option c be the right one with
probability :math:`a_c`, and :math:`q_d` be the target after a decision for d.

**Greedy decisions** fall on one option d whatever is drawn. The loss is least where p is the mean
target, :math:`a_d \cdot \text{(d alone)} + (1 - a_d) \cdot \text{(target when wrong)}`:

.. math:: p_d = a_d + \frac{1 - a_d}{K} \text{ (uniform)}, \qquad
    p_d = a_d \text{ (others, log score)}

**Sampled decisions** fall on d with probability :math:`p_d`. Their draw is no part of the loss
that is differentiated, so training rests where the mean update
:math:`\mathbb{E}_{d \sim p}[q_d - p]` is 0. For the uniform target that is
:math:`p_c = a_c p_c + \frac1K \sum_g (1 - a_g) p_g`, and so :math:`p_c (1 - a_c)` is the same for
all c. For the others, with :math:`u_c = p_c (1 - a_c)` and their sum U, it is
:math:`u_c = (U - u_c) / (K - 1)`, and :math:`u_c` is again the same for all c. For the log score
:math:`(a_c - p_c) / (1 - p_c)` must be the same for all c, and as both sum to 1, it is 0:

.. math:: p_c = \frac{1 / (1 - a_c)}{\sum_g 1 / (1 - a_g)} \text{ (uniform, others)}, \qquad
    p_c = a_c \text{ (log score)}

So the paper's loss is proper, which is to ask for :math:`p = a`, where K = 2 and decisions are
sampled, and nowhere else. With K = 5 and :math:`a_d = 0.74`, the rest shared evenly, it asks for
0.473 when decisions are sampled and for 0.792 when they are greedy; the target on the others asks
for 0.473 and 0.74, and the log score for 0.74 both times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from corea import checks

if TYPE_CHECKING:
    from torch import Tensor

CALIBRATION_LOSSES = ("uniform", "others", "log_score")
DECISIONS = ("sampled", "greedy")


def decision_losses(
    logprobs: Tensor, options: Sequence[int], decided: Tensor, gold: Tensor, calibration_loss: str
) -> Tensor:
    """The calibration-aware loss of each decision.

    Source: paper B, section 5 (``"uniform"``); the others are ours, see this module.

    Args:
        logprobs: Natural log-probabilities of the vocabulary at temperature 1, shape (n, V).
        options: The tokens of the K options.
        decided: Index of the option that was decided for, shape (n,).
        gold: Index of the right option, shape (n,).
        calibration_loss: One of :data:`CALIBRATION_LOSSES`.

    Returns:
        Shape (n,), from 0. All are finite, and so are their gradients, where p rounds to 1 too.
    """
    checks.one_of(calibration_loss, "calibration_loss", CALIBRATION_LOSSES)
    of_options = logprobs[:, list(options)]
    own = of_options.gather(1, decided[:, None])[:, 0]
    if calibration_loss == "log_score":
        # of all other tokens together: 1 - p would be 0 long before they are
        token = decided.new_tensor(list(options))[decided]
        wrong = logprobs.scatter(1, token[:, None], float("-inf")).logsumexp(dim=1)
    elif calibration_loss == "uniform":
        wrong = of_options.mean(dim=1)
    else:
        wrong = (of_options.sum(dim=1) - own) / (len(options) - 1)
    return -own.where(decided == gold, wrong)


def optimal_probabilities(
    right: ArrayLike, calibration_loss: str, decisions: str
) -> NDArray[np.float64]:
    r"""What the calibration-aware loss asks for, of each option.

    Source: derived from paper B, section 5; see this module.

    Args:
        right: :math:`a_c`, how often each option is the right one, shape (..., K); rows sum to 1.
        calibration_loss: One of :data:`CALIBRATION_LOSSES`.
        decisions: ``"sampled"`` or ``"greedy"``.

    Returns:
        :math:`p_c`, shape (..., K). With sampled decisions a row is one distribution; with greedy
        ones each entry is the confidence that is asked for where that option is decided for.

    Raises:
        ValueError: If a name is unknown, there are fewer than two options, or a row is no
            distribution.

    Example:
        >>> optimal_probabilities([0.75, 0.25, 0.0], "uniform", "sampled").round(3).tolist()
        [0.632, 0.211, 0.158]
        >>> optimal_probabilities([0.75, 0.25, 0.0], "uniform", "greedy").round(3).tolist()
        [0.833, 0.5, 0.333]
    """
    checks.one_of(calibration_loss, "calibration_loss", CALIBRATION_LOSSES)
    checks.one_of(decisions, "decisions", DECISIONS)
    a = asked = np.asarray(right, dtype=np.float64)
    if not a.ndim or a.shape[-1] < 2:
        raise ValueError(f"right has shape {a.shape}; expected (..., K) with K from 2")
    fits = (a >= 0).all(axis=-1) & np.isclose(a.sum(axis=-1), 1)
    if not fits.all():
        raise ValueError(f"right has {a[~fits][0].tolist()}; expected probabilities that sum to 1")
    if decisions == "sampled" and calibration_loss != "log_score":
        wrong = np.maximum(1 - a, 0)
        lowest = wrong.min(axis=-1, keepdims=True)
        # a certain option gets all: lowest / wrong, without 0 / 0
        weight = np.where(wrong == lowest, 1.0, lowest / np.where(wrong > 0, wrong, 1.0))
        asked = weight / weight.sum(axis=-1, keepdims=True)
    elif calibration_loss == "uniform":
        asked = a + (1 - a) / a.shape[-1]
    return asked


def optimal_confidence(
    accuracy: ArrayLike, n_options: int, calibration_loss: str, decisions: str
) -> NDArray[np.float64]:
    """What the calibration-aware loss asks for where the other options are alike.

    Args:
        accuracy: How often the option is the right one, in [0, 1], of any shape; the others share
            the rest evenly.
        n_options: K, from 2.
        calibration_loss: One of :data:`CALIBRATION_LOSSES`.
        decisions: ``"sampled"`` or ``"greedy"``.

    Returns:
        The probabilities, of the shape of ``accuracy``.

    Raises:
        ValueError: If a name is unknown or a number out of range.

    Example:
        >>> for decisions in ("sampled", "greedy"):
        ...     optimal_confidence([0.2, 0.74, 1.0], 5, "uniform", decisions).round(3).tolist()
        [0.2, 0.473, 1.0]
        [0.36, 0.792, 1.0]
        >>> optimal_confidence(0.74, 2, "uniform", "sampled").round(3).item()
        0.74
    """
    checks.whole(n_options, "n_options", 2)
    a = np.asarray(accuracy, dtype=float)
    if not ((a >= 0) & (a <= 1)).all():
        raise ValueError(f"accuracy is {accuracy!r}; expected numbers in [0, 1]")
    rest = (1 - a) / (n_options - 1)
    right = np.stack([a, *[rest] * (n_options - 1)], axis=-1)
    return optimal_probabilities(right, calibration_loss, decisions)[..., 0]
