"""Settings of RLCC (paper A), without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from corea.rlcc.rewards import CONFIDENCE_REWARDS, confidence_reward
from corea.training.settings import Floats, RolloutSettings, from_zero, one_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class GRPOSettings(RolloutSettings):
    """GRPO with a confidence reward; the rest is that of :class:`RolloutSettings`.

    Attributes:
        confidence_reward: Name in :data:`corea.rlcc.rewards.CONFIDENCE_REWARDS`; ``"none"`` is
            RLVR.
        confidence_weight: Weight of the confidence reward.
        format_weight: Weight of the format reward.

    Example:
        >>> GRPOSettings("l1", group_size=8, batch=100)
        Traceback (most recent call last):
            ...
        ValueError: batch is 100; expected a multiple of group_size, 8
    """

    confidence_reward: str = one_of("l1", tuple(CONFIDENCE_REWARDS))
    confidence_weight: float = from_zero(1.0)
    format_weight: float = from_zero(1.0)

    @property
    def reward_weights(self) -> list[float]:
        """Weights of correctness, confidence and format."""
        return [1.0, self.confidence_weight, self.format_weight]

    def earned(self, rollouts: pd.DataFrame) -> dict[str, Floats]:
        """Correctness, format, and confidence if it is rewarded."""
        rewards = super().earned(rollouts)
        if self.confidence_reward != "none":
            rewards["confidence"] = confidence_reward(
                self.confidence_reward,
                rollouts["confidence"].to_numpy(),
                rewards["correctness"],
                self.group_size,
            )
        return rewards | {"format": rollouts["format"].to_numpy()}
