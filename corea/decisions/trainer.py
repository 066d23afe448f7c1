r"""Reinforcement of decisions, on TRL (paper B, sections 3.1 and 5).

What is decided here:

1. Vanilla GRPO pays 1 for a right decision and 0 otherwise. The calibration-aware loss is

   .. math:: L = L_\text{GRPO} + \lambda L_\text{CE}, \qquad
       L_\text{CE} = \frac1N \sum_{i=1}^{N} \ell_i

   over the N decisions of a rollout, with the advantage of the decision token set to 0. What a
   decision loses, :math:`\ell_i`, is the cross-entropy of the paper or one of ours
   (:func:`corea.decisions.loss.decision_losses`).
2. :math:`L_\text{CE}` is a mean over decisions, whatever ``loss_type`` divides the other part by,
   and whatever the batch layout. The paper does not say what its 0.001 multiplies. TRL's
   ``"bnpo"`` divides the sum of the tokens' losses by their number in the batch: B completions of
   T tokens give each token the weight 1/(B T), and a decision has the weight lambda/B here. If
   the paper's cross-entropy is one token's loss among those T, divided with them, its 0.001 is
   0.001/T here: 4e-6 to 2e-5 for 256 to 50 tokens. If it is a mean over decisions, it is 0.001;
   but then a decision is pulled lambda T times as much as another token, 0.05 to 0.26 times for
   the paper's completions of up to 256 tokens. In completions of 16 tokens, about those of our
   world's choices, 0.003 to 0.016 does that.
3. Probabilities at the decision are those of the full vocabulary at temperature 1, whatever the
   rollouts were sampled at, and come from the same forward pass.
4. The flag and the reward follow the decision of the rollout. With ``decisions="sampled"`` (the
   paper's) that is drawn like every other token; with ``"greedy"`` all tokens after the reasoning
   that was drawn are the likeliest, so that a low confidence does not turn rewards into noise.
   Tokens that were not drawn have no policy gradient that means anything: with ``mask_decision``
   the decision has none, and the white space and the end around it are all but certain.
5. Completions without a valid decision earn 0 and take part in GRPO only. A trajectory reward of
   ``"brier"`` pays minus the Brier score of the decision, and -1 without one; the probability is
   the one that our engine computed when it wrote the token.
6. Whether the two parts pull apart is measured as the cosine of their gradients with respect to
   all trained weights; with several processes or parts of a batch, the mean over them.
7. A checkpoint is selected on a validation split (the paper: on the test set), by correctness and
   the Brier score of the decisions' confidence together, by the rule of
   :mod:`corea.training.checkpoints`; the same for all methods and trajectory rewards.
8. The paper uses BNPO, which it describes as a normalisation of the rewards within a batch. TRL's
   ``loss_type="bnpo"`` is another thing: the division by the number of tokens of choice 2. How
   rewards are normalised is ``scale_rewards``, by group as in the paper's equation (3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import gather
from transformers import PreTrainedTokenizerBase

from corea.decisions.loss import decision_losses
from corea.decisions.settings import DecisionSettings, brier_reward
from corea.decisions.tokens import OptionError, decision_position, option_ids
from corea.engines.prompts import chat_prompt
from corea.metrics.calibration import describe_stated
from corea.tasks.decision_questions import NO_THINKING, DecisionQuestion
from corea.training.alarms import without_variance
from corea.training.grpo import RolloutTrainer, digest, reinforce
from corea.training.settings import Floats, TrainingError

DECISION_METRICS = ("accuracy", "confidence", "ece", "auroc", "no_decision")


class DecisionTrainer(RolloutTrainer):
    """TRL's GRPO trainer on decisions, with the calibration-aware loss."""

    settings: DecisionSettings
    logged: ClassVar = {"reward": "reward"} | {
        name: name
        for name in (
            *("calibration_loss", "gradient_cosine", "groups_without_variance"),
            *DECISION_METRICS,
        )
    }

    def __init__(self, settings: DecisionSettings, directory: Path, **arguments: Any) -> None:
        """Set up as TRL's trainer does; options that are not one token each are refused."""
        self.options = tuple(arguments["train_dataset"][0]["options"])
        self.option_ids = option_ids(arguments["processing_class"], self.options)
        self.texts: dict[int, str] = {}  # of tokens met

        def reward(
            completion_ids: Sequence[Sequence[int]],
            gold: Sequence[str],
            token_logprobs: Sequence[Floats] = (),
            **_: object,
        ) -> list[float]:
            found = self._decided(completion_ids)
            labels = [self.options.index(label) for label in gold]
            right = np.equal([index for _, index in found], labels).astype(float)
            if settings.trajectory_reward == "brier":
                logprobs = [
                    row[place] if place >= 0 else np.nan
                    for row, (place, _) in zip(token_logprobs, found, strict=True)
                ]
                right = brier_reward(np.exp(logprobs), right)
            earned: list[float] = right.tolist()
            return earned

        super().__init__(settings, directory, [reward], **arguments)

    def _decided(self, rows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """Place of the decision in each completion and of the option decided for; -1 for none."""
        tokenizer, known = self.processing_class, self.option_ids
        for token in set[int]().union(*rows) - self.texts.keys():
            self.texts[token] = tokenizer.decode([token])
        ends = {tokenizer.eos_token_id}
        places = [
            decision_position([self.texts[token] for token in ids], ids, known, ends)
            for ids in rows
        ]
        return [
            (-1, -1) if place is None else (place, known.index(ids[place]))
            for ids, place in zip(rows, places, strict=True)
        ]

    def annotate(self, inputs: list[dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
        """Add where each completion decides and what for, and mask its advantage there.

        Added are ``decision_place``, ``decided``, ``gold_option``, ``decisions`` (their share in
        the whole rollout, over all processes) and ``question``, each of shape (B,); advantages
        have the shape (B, T) where decisions are masked.
        """
        ids, mask = batch["completion_ids"], batch["completion_mask"]
        rows = [row[: int(kept.sum())].tolist() for row, kept in zip(ids, mask, strict=True)]
        found = self._decided(rows)
        whole = {"dtype": torch.long, "device": ids.device}
        place = torch.tensor([place for place, _ in found], **whole)
        batch["decision_place"] = place
        batch["decided"] = torch.tensor([index for _, index in found], **whole)
        gold = [self.options.index(row["gold"]) for row in inputs]
        batch["gold_option"] = torch.tensor(gold, **whole)
        batch["question"] = torch.tensor([digest(row["prompt"]) for row in inputs], **whole)
        if self.model.training:
            right = gather((batch["decided"] == batch["gold_option"]).double()).cpu().numpy()
            accuracy = right.reshape(-1, self.settings.group_size).mean(axis=1)
            logged = self._metrics["train"]["groups_without_variance"]
            logged.append(without_variance(accuracy))
        share = gather((place >= 0).double().mean().reshape(1)).mean()
        batch["decisions"] = share.expand(len(inputs)).clone()
        if self.settings.mask_decision:
            advantages = batch["advantages"][:, None].repeat(1, ids.shape[1])
            decides = place >= 0
            advantages[decides, place[decides]] = 0
            batch["advantages"] = advantages
        return batch

    @contextmanager
    def watching(self, model: Any) -> Iterator[list[torch.Tensor]]:
        """The hidden states of the last layer: a list that then holds them, (B, P + T, d)."""
        states: list[torch.Tensor] = []
        unwrapped = self.accelerator.unwrap_model(model)
        if hasattr(unwrapped, "get_base_model"):  # of peft
            unwrapped = unwrapped.get_base_model()
        hook = unwrapped.get_decoder().register_forward_hook(
            lambda _, __, output: states.append(output[0])
        )
        try:
            yield states
        finally:
            hook.remove()

    def adjusted(
        self, loss: torch.Tensor, model: Any, inputs: dict[str, Any], states: list[torch.Tensor]
    ) -> torch.Tensor:
        """The loss with the calibration-aware part."""
        place = inputs["decision_place"]
        (hidden,) = states
        rows = (place >= 0).nonzero()[:, 0]
        # the token before the decision predicts it
        before = inputs["prompt_ids"].shape[1] + place[rows] - 1
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        logprobs = head(hidden[rows, before]).float().log_softmax(dim=-1)  # (n, V)
        losses = decision_losses(
            logprobs,
            self.option_ids,
            inputs["decided"][rows],
            inputs["gold_option"][rows],
            self.settings.calibration_loss,
        )
        # a mean over the decisions of the rollout, though they are spread unevenly
        share = inputs["decisions"][:1].clamp(min=1e-9).to(losses)[0]
        part = losses.sum() / (len(place) * share)
        tokens = inputs["completion_ids"][rows, place[rows]]
        self._note(inputs, rows, logprobs.detach().gather(1, tokens[:, None])[:, 0].exp())
        if self.model.training:
            summed = gather(
                torch.stack([losses.detach().sum(), losses.new_tensor(float(len(rows)))])
            )
            total, n = summed.reshape(-1, 2).sum(dim=0).tolist()
            self._metrics["train"]["calibration_loss"].append(total / n if n else float("nan"))
            every = self.settings.cosine_every
            if every and self.state.global_step % every == 0:
                cosine = _cosine(loss, part, model)
                self._metrics["train"]["gradient_cosine"].append(gather(cosine).mean().item())
            part = part / self.current_gradient_accumulation_steps
        weight = self.settings.calibration_weight
        return loss + weight * part if weight else loss

    def _note(self, inputs: dict[str, Any], decides: torch.Tensor, p: torch.Tensor) -> None:
        """Log what was decided and how surely; keep it of a validation."""
        confidence = torch.full(inputs["decided"].shape, torch.nan, dtype=torch.float64)
        confidence[decides.cpu()] = p.double().cpu()
        correct = (inputs["decided"] == inputs["gold_option"]).double().cpu()
        local = torch.stack([correct, confidence, inputs["question"].double().cpu()], dim=1)
        rows = gather(local.to(p.device).contiguous()).cpu().numpy()
        right, stated = rows[:, 0], rows[:, 1]
        if not self.model.training:
            self.keep_validated(rows[:, 2], right, stated)
            return
        for name, value in decision_metrics(right, stated).items():
            self._metrics["train"][name].append(value)


def _cosine(first: torch.Tensor, second: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Cosine of the gradients of two losses of the same forward pass, shape (1,)."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    one, other = (
        torch.cat(
            [
                torch.zeros(weight.numel(), device=weight.device)
                if part is None
                else part.flatten()
                for part, weight in zip(
                    torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True),
                    weights,
                    strict=True,
                )
            ]
        )
        for loss in (first, second)
    )
    return torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0).reshape(1)


def decision_metrics(correct: Floats, confidence: Floats) -> dict[str, float]:
    """What is logged of a batch of decisions.

    Args:
        correct: 0 or 1, shape (n,).
        confidence: Of the decisions, NaN where there is none, shape (n,).

    Returns:
        The metrics of :data:`DECISION_METRICS`: ``accuracy`` of all; mean ``confidence``, ``ece``
        (10 bins of equal mass, as in paper B) and ``auroc`` of the decisions, NaN where undefined;
        ``no_decision``, the share without one.

    Example:
        >>> import numpy as np
        >>> found = decision_metrics(np.array([1.0, 0.0]), np.array([0.75, np.nan]))
        >>> found["accuracy"], found["confidence"], found["ece"], found["no_decision"]
        (0.5, 0.75, 0.25, 0.5)
    """
    found = describe_stated(confidence, correct, binning="equal_mass")
    return {
        "accuracy": found["pass_at_1"],
        "confidence": found["mean_confidence"],
        "ece": found["ece"],
        "auroc": found["auroc"],
        "no_decision": 1 - found["confidence_output_ratio"],
    }


def train_decisions(
    base: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[DecisionQuestion],
    validation: Sequence[DecisionQuestion],
    settings: DecisionSettings,
    directory: str | Path,
) -> None:
    """Train a model by GRPO on decisions it reasons about, or go on where a killed run stopped.

    Source: paper B, section 5 and appendix A.

    Args:
        base: Folder or hub name of the model to start from.
        tokenizer: Its tokenizer.
        questions: To train on, all with the same options.
        validation: Held out, for checkpoint selection; no prompt twice.
        settings: The settings.
        directory: Where everything is written, as for :func:`corea.training.grpo.reinforce`.

    Raises:
        OptionError: If questions differ in their options, or those are not one token each.
        TrainingError: As :func:`corea.training.grpo.reinforce` does, and if the tokenizer has no
            token for padding.
        ValueError: As :func:`corea.training.grpo.reinforce` does.
    """
    options = {question.options for question in [*questions, *validation]}
    if len(options) > 1:
        raise OptionError(f"questions differ in their options: {sorted(options)}")
    if tokenizer.pad_token_id is None:
        raise TrainingError("the tokenizer has no token for padding; set tokenizer.pad_token")
    reinforce(
        DecisionTrainer,
        base,
        tokenizer,
        _rows(questions, tokenizer),
        _rows(validation, tokenizer),
        settings,
        directory,
    )


def supervised_rows(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[DecisionQuestion]
) -> list[dict[str, str]]:
    """Rows of supervised fine-tuning: the right decision token after a prompt without reasoning.

    :func:`corea.training.sft.train_sft` adds the end token, which is learnt too.

    Source: paper B, equation (1), which has the decision token alone. Options that are not one
    token each are refused.
    """
    for options in dict.fromkeys(question.options for question in questions):
        option_ids(tokenizer, options)
    return [
        {
            "prompt": chat_prompt(tokenizer, question.prompt(reasoning=False), NO_THINKING),
            "completion": question.gold,
        }
        for question in questions
    ]


def _rows(
    questions: Sequence[DecisionQuestion], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    return [
        {
            "prompt": chat_prompt(tokenizer, question.prompt(reasoning=True)),
            "question_id": f"{question.dataset}/{question.question_id}",
            "gold": question.gold,
            "options": list(question.options),
        }
        for question in questions
    ]
