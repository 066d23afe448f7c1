"""The alarms of a calibration training as a callback, for TRL's trainers and our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from corea.training.alarms import Limits, raised, report_alarm
from corea.training.settings import TrainingError

READ = "confidence_output_ratio"  # logged by the confidence reward, with all that is read


class AlarmCallback(TrainerCallback):  # type: ignore[misc]
    """Watch what :func:`corea.rlcc.reward_functions.confidence` logs, and act on an alarm.

    Alarms are printed and written to ``alarms.jsonl`` in the output folder, at their first step
    and again after each recovery; all are computed from the log, which checkpoints keep, so that a
    resumed run goes on as if it had not stopped. What is done then:

    - ``"tell"``: no more than that.
    - ``"stop"``: the training ends, with the weights it has.
    - ``"roll back"``: it ends with the weights of the last checkpoint made before the steps that
      the alarm is about (the last ``limits.window`` that were logged). TRL's trainer loads them
      itself, as its best model; where there is no such checkpoint, the weights stay and it says so.

    Example:
        >>> AlarmCallback("undo")
        Traceback (most recent call last):
            ...
        ValueError: then is 'undo'; expected 'tell', 'stop' or 'roll back'
    """

    def __init__(
        self,
        then: Literal["tell", "stop", "roll back"] = "tell",
        limits: Limits | None = None,
        alarms: tuple[str, ...] = ("collapse", "silence", "calibration", "accuracy"),
    ) -> None:
        """Act on these alarms only."""
        if then not in ("tell", "stop", "roll back"):
            raise ValueError(f"then is {then!r}; expected 'tell', 'stop' or 'roll back'")
        self.then, self.limits, self.alarms = then, limits or Limits(), alarms
        self.made: set[int] = set()  # steps of this run's checkpoints

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Refuse to roll back where nothing is saved, or where something else chooses the end."""
        saves = args.save_strategy != "no" and not args.load_best_model_at_end
        if self.then == "roll back" and not saves:
            raise TrainingError(
                f"rolling back needs checkpoints: save_strategy is {args.save_strategy!s} and "
                f"load_best_model_at_end is {args.load_best_model_at_end}; expected steps or "
                "epoch, and False"
            )
        # the output folder may hold those of an earlier run, too
        steps = range(1, state.global_step + 1)  # of a run that is resumed
        self.made = {step for step in steps if _folder(args, step).is_dir()}

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember that there is a checkpoint."""
        self.made.add(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Look at what was logged of a step."""
        steps = _logged(state)
        if "loss" in (logs or {}) and not steps:
            raise TrainingError(
                f"nothing logs {READ!r}, so that no alarm can go off; expected a reward function "
                "corea.rlcc.reward_functions.confidence(...)"
            )
        if READ not in (logs or {}):
            return
        now, before = self._on(steps), self._on(steps[:-1])
        new = {alarm: text for alarm, text in now.items() if alarm not in before}
        for alarm, text in new.items():
            _report(args, state, alarm, text)
        if new and self.then != "tell":
            control.should_training_stop = True
        if new and self.then == "roll back":
            self._roll_back(args, state, steps)

    def _on(self, steps: list[dict[str, Any]]) -> dict[str, str]:
        found = raised(steps, self.limits)
        return {alarm: text for alarm, text in found.items() if alarm in self.alarms}

    def _roll_back(self, args: Any, state: Any, steps: list[dict[str, Any]]) -> None:
        begins = [0, *(step["step"] for step in steps)][-self.limits.window - 1 :][0]
        sound = [step for step in self.made if step <= begins and _folder(args, step).is_dir()]
        told = f"no checkpoint of step {begins} or before; the weights stay as they are"
        if sound:
            # what trainers do for the best checkpoint: adapters, shards and all
            args.load_best_model_at_end = True
            state.best_model_checkpoint = str(_folder(args, max(sound)))
            told = f"the weights of checkpoint-{max(sound)}"
        _report(args, state, "rolled back", told)


def _report(args: Any, state: Any, alarm: str, text: str) -> None:
    if state.is_world_process_zero:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        report_alarm(Path(args.output_dir), state.global_step, alarm, text, ())


def _folder(args: Any, step: int) -> Path:
    return Path(args.output_dir, f"checkpoint-{step}")


def _logged(state: Any) -> list[dict[str, Any]]:
    return [row for row in state.log_history if READ in row]
