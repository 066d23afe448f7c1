"""Settings of GRPO on decisions (paper B), without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from corea.decisions.loss import CALIBRATION_LOSSES, DECISIONS
from corea.tasks.decision_questions import END_OF_THINKING
from corea.training.settings import Floats, RolloutSettings, from_zero, one_of

if TYPE_CHECKING:
    import pandas as pd

    from corea.engines.base import Sampling


@dataclass(frozen=True)
class DecisionSettings(RolloutSettings):
    """GRPO on decisions; the rest is that of :class:`corea.training.settings.RolloutSettings`.

    Attributes:
        calibration_weight: The paper's lambda, the weight of the calibration-aware loss; 0 is
            vanilla GRPO.
        calibration_loss: ``"uniform"`` (the paper's), ``"others"`` or ``"log_score"``, as in
            :mod:`corea.decisions.loss`.
        mask_decision: Whether the advantage of the decision token is 0.
        decisions: ``"sampled"`` (the paper's) or ``"greedy"``: all that follows the reasoning is
            the likeliest token.
        trajectory_reward: What a rollout earns whose decision has the probability p and is right
            (y = 1) or wrong (y = 0): ``"correctness"``, y; or ``"brier"``, :math:`-(p - y)^2`,
            and -1 without a decision. p is that of the policy that made the rollout.
        cosine_every: Steps between measurements of the angle of the two gradients; 0: never. One
            costs two backward passes.

    Example:
        >>> DecisionSettings(calibration_weight=-0.1)
        Traceback (most recent call last):
            ...
        ValueError: calibration_weight is -0.1; expected a number, 0 or more
    """

    calibration_weight: float = from_zero(0.0)
    calibration_loss: str = one_of("uniform", CALIBRATION_LOSSES)
    mask_decision: bool = False
    decisions: str = one_of("sampled", DECISIONS)
    trajectory_reward: str = one_of("correctness", ("correctness", "brier"))
    cosine_every: int = from_zero(0)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        for name, value in (("decisions", "greedy"), ("trajectory_reward", "brier")):
            if getattr(self, name) == value and self.rollouts != "corea":
                raise ValueError(
                    f"{name} is {value!r} with rollouts {self.rollouts!r}; expected 'corea'"
                )

    @property
    def needs_whole_weights(self) -> str:
        """The calibration-aware loss, which reads the output layer outside the forward pass."""
        return "decisions"

    def sampling(self, seed: int) -> Sampling:
        """How rollouts are drawn; with greedy decisions, what follows the reasoning is not."""
        greedy_after = END_OF_THINKING if self.decisions == "greedy" else ""
        return replace(super().sampling(seed), greedy_after=greedy_after)

    def earned(self, rollouts: pd.DataFrame) -> dict[str, Floats]:
        """Correctness and minus the Brier score, -1 where nothing was decided.

        The same for all methods, so that they differ in training and not in selection.
        """
        rewards = super().earned(rollouts)
        p = rollouts["confidence"].to_numpy()
        return rewards | {"calibration": brier_reward(p, rewards["correctness"])}


def brier_reward(confidence: Floats, correct: Floats) -> Floats:
    r"""Minus the Brier score of each decision, :math:`-(p - y)^2`, and -1 where there is none.

    Source: ours; paper B, section 4.1, expects that no reward of whole rollouts calibrates.

    Args:
        confidence: p, NaN where there is no decision, shape (n,).
        correct: y, 0 or 1, shape (n,).

    Example:
        >>> brier_reward(np.array([0.75, 0.5, np.nan]), np.array([1.0, 0.0, 0.0])).tolist()
        [-0.0625, -0.25, -1.0]
    """
    rewards: Floats = np.where(np.isnan(confidence), -1.0, -((confidence - correct) ** 2))
    return rewards
