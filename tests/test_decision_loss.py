"""What the calibration-aware loss asks for, against the update that training really makes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corea.decisions.loss import (
    CALIBRATION_LOSSES,
    DECISIONS,
    decision_losses,
    optimal_confidence,
    optimal_probabilities,
)

torch = pytest.importorskip("torch")

OTHER = {"sampled": "greedy", "greedy": "sampled"}


def simulated(right, loss, decisions, rows=200, steps=900):
    """Where stochastic gradient descent comes to rest: mean p (K,) over the last third.

    Each step of each row is one decision, one right option and the gradient of their loss.
    """
    draw = torch.Generator().manual_seed(0)
    chances = torch.tensor(right).expand(rows, -1)
    logits = torch.zeros(rows, len(right))
    logits[:, 0] = 0.1  # so that the greedy decision is the first
    rested = []
    for step in range(steps):
        logits.requires_grad_()
        logprobs = logits.log_softmax(dim=-1)
        p = logprobs.detach().exp()
        decided = (
            torch.multinomial(p, 1, generator=draw)[:, 0]
            if decisions == "sampled"
            else p.argmax(dim=-1)
        )
        gold = torch.multinomial(chances, 1, generator=draw)[:, 0]
        losses = decision_losses(logprobs, range(len(right)), decided, gold, loss)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        logits = logits.detach() - (0.3 if step < steps // 3 else 0.03) * gradient
        if step >= 2 * steps // 3:
            rested.append(p.mean(dim=0))
    return torch.stack(rested).mean(dim=0).numpy()


@pytest.mark.parametrize("loss", CALIBRATION_LOSSES)
@pytest.mark.parametrize("decisions", DECISIONS)
@pytest.mark.parametrize("n_options", [2, 5])
def test_training_comes_to_rest_where_the_formula_says(loss, decisions, n_options):
    accuracy = 0.74
    right = [accuracy, *[(1 - accuracy) / (n_options - 1)] * (n_options - 1)]
    found = simulated(right, loss, decisions)[0]
    assert found == pytest.approx(
        optimal_confidence(accuracy, n_options, loss, decisions), abs=0.01
    )
    elsewhere = optimal_confidence(accuracy, n_options, loss, OTHER[decisions])
    differs = loss == "uniform" or (loss == "others" and n_options > 2)
    assert (abs(found - elsewhere) > 0.1) == differs


def test_sampled_decisions_come_to_rest_at_a_whole_distribution():
    right = [0.55, 0.3, 0.15]
    for loss in CALIBRATION_LOSSES:
        asked = optimal_probabilities(right, loss, "sampled")
        np.testing.assert_allclose(simulated(right, loss, "sampled"), asked, atol=0.02)
    assert asked.tolist() == right  # of the log score


def test_numbers_of_the_derivation():
    asked = {
        (loss, decisions): round(float(optimal_confidence(0.74, 5, loss, decisions)), 3)
        for loss in CALIBRATION_LOSSES
        for decisions in DECISIONS
    }
    assert asked == {
        ("uniform", "sampled"): 0.473, ("uniform", "greedy"): 0.792,
        ("others", "sampled"): 0.473, ("others", "greedy"): 0.74,
        ("log_score", "sampled"): 0.74, ("log_score", "greedy"): 0.74,
    }  # fmt: skip


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=6))
def test_the_mean_target_of_sampled_decisions_is_what_is_asked_for(weights):
    """The fixed point itself: the target, averaged over decisions and outcomes, is p again."""
    right = np.array(weights) / sum(weights)
    k = len(right)
    for loss, wrong in (("uniform", np.full((k, k), 1 / k)), ("others", (1 - np.eye(k)) / (k - 1))):
        p = optimal_probabilities(right, loss, "sampled")
        targets = right[:, None] * np.eye(k) + (1 - right[:, None]) * wrong
        np.testing.assert_allclose(p @ targets, p, atol=1e-9)
        assert p.sum() == pytest.approx(1)


def test_two_options_and_sampled_decisions_make_every_loss_proper():
    accuracy = np.linspace(0, 1, 11)
    for loss in CALIBRATION_LOSSES:
        np.testing.assert_allclose(optimal_confidence(accuracy, 2, loss, "sampled"), accuracy)


def test_a_certain_option_gets_everything():
    for loss in CALIBRATION_LOSSES:
        for decisions in DECISIONS:
            assert optimal_probabilities([1.0, 0.0, 0.0], loss, decisions)[0] == 1
        np.testing.assert_array_equal(
            optimal_probabilities([1.0, 0.0, 0.0], loss, "sampled"), [1, 0, 0]
        )
    assert optimal_confidence([[0.5, 1.0]], 4, "uniform", "sampled").shape == (1, 2)


# --- the loss itself ------------------------------------------------------------------------------


def test_losses_of_one_decision():
    logprobs = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()  # the last token is no option
    expected = {
        "uniform": -(math.log(0.5) + 2 * math.log(0.2)) / 3,
        "others": -math.log(0.2),
        "log_score": -math.log(1 - 0.5),
    }
    for loss, wrong in expected.items():
        for gold, value in ((0, -math.log(0.5)), (2, wrong)):
            found = decision_losses(
                logprobs, [0, 1, 2], torch.tensor([0]), torch.tensor([gold]), loss
            )
            assert found.item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", CALIBRATION_LOSSES)
def test_a_certain_decision_that_is_wrong_has_a_finite_gradient(loss, dtype):
    # p rounds to 1, which it is not: 1e-8 is left for the others together
    gap = math.log(3 * (1 - 1e-8) / 1e-8)
    logits = torch.tensor([[gap, 0.0, 0.0, 0.0], [90.0, 0.0, 0.0, 0.0]], dtype=dtype)
    logits.requires_grad_()
    logprobs = logits.float().log_softmax(dim=-1)
    assert logprobs[0, 0].exp() == 1
    decided, gold = torch.tensor([0, 0]), torch.tensor([1, 1])
    losses = decision_losses(logprobs, [0, 1], decided, gold, loss)
    assert torch.isfinite(losses).all()
    losses.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 0] > 0.4).all()  # and it is brought down
    if loss == "log_score":
        rounding = 1e-5 if dtype == torch.float32 else 0.02
        assert losses[0].item() == pytest.approx(-math.log(1e-8), rel=rounding)
        assert logits.grad[0].tolist() == pytest.approx([1, *[-1 / 3] * 3], rel=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimal_confidence([0.5, 1.5], 3, "uniform", "sampled"), "accuracy is"),
        (lambda: optimal_confidence(0.5, 1, "others", "greedy"), "n_options is 1; expected a whol"),
        (lambda: optimal_confidence(0.5, 2, "proper", "greedy"), "calibration_loss is 'proper'; e"),
        (lambda: optimal_confidence(0.5, 2, "others", "both"), "decisions is 'both'; expected one"),
        (lambda: optimal_probabilities([[0.5, 0.4]], "others", "greedy"), r"right has \[0.5, 0.4\]"),
        (lambda: optimal_probabilities([1.5, -0.5], "others", "greedy"), r"right has \[1.5, -0.5\]"),
        (lambda: optimal_probabilities([1.0], "others", "greedy"), r"right has shape \(1,\)"),
        (lambda: decision_losses(torch.zeros(1, 2), [0, 1], torch.tensor([0]), torch.tensor([0]), "x"), "calibration_loss is 'x'"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
