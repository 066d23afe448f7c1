"""Settings of GRPO on decisions (paper B), without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from corea.tasks.decision_questions import END_OF_THINKING
from corea.training.settings import Floats, RolloutSettings, from_zero, one_of

if TYPE_CHECKING:
    import pandas as pd

    from corea.engines.generate import Sampling


@dataclass(frozen=True)
class DecisionSettings(RolloutSettings):
    """GRPO on decisions; the rest is that of :class:`corea.training.settings.RolloutSettings`.

    Attributes:
        calibration_weight: The paper's lambda, the weight of the calibration-aware loss; 0 is
            vanilla GRPO.
        wrong_target: Target after a wrong decision: ``"uniform"`` (the paper's) or ``"proper"``.
        calibration_warmup_steps: Steps over which the weight rises from 0.
        mask_decision: Whether the advantage of the decision token is 0.
        decisions: ``"sampled"`` (the paper's) or ``"greedy"``.
        cosine_every: Steps between measurements of the angle of the two gradients; 0: never. One
            costs two backward passes.

    Example:
        >>> DecisionSettings(calibration_weight=-0.1)
        Traceback (most recent call last):
            ...
        ValueError: calibration_weight is -0.1; expected a number, 0 or more
    """

    calibration_weight: float = from_zero(0.0)
    wrong_target: str = one_of("uniform", ("uniform", "proper"))
    calibration_warmup_steps: int = from_zero(0)
    mask_decision: bool = False
    decisions: str = one_of("sampled", ("sampled", "greedy"))
    cosine_every: int = from_zero(0)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.decisions == "greedy" and self.rollouts != "corea":
            raise ValueError(
                f"decisions is 'greedy' with rollouts {self.rollouts!r}; expected 'corea'"
            )

    @property
    def needs_whole_weights(self) -> str:
        """The calibration-aware loss, which reads the output layer outside the forward pass."""
        return "decisions"

    def sampling(self, seed: int) -> Sampling:
        """How rollouts are drawn; with greedy decisions, the token after the reasoning is not."""
        greedy_after = f"{END_OF_THINKING}\n" if self.decisions == "greedy" else ""
        return replace(super().sampling(seed), greedy_after=greedy_after)

    def earned(self, rollouts: pd.DataFrame) -> dict[str, Floats]:
        """Correctness and minus the Brier score, -1 where nothing was decided."""
        rewards = super().earned(rollouts)
        distance = rollouts["confidence"].to_numpy() - rewards["correctness"]
        return rewards | {"calibration": np.where(np.isnan(distance), -1.0, -(distance**2))}
