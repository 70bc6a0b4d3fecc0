"""The training loop that all trainings share: logging, checkpoints, evaluations, and signals that end it."""

import math
import sys
import time
from collections.abc import Callable, Collection

from tqdm import tqdm

from skdcgn import distributed
from skdcgn.files import load_checkpoint, save_checkpoint
from skdcgn.runs.run import Run
from skdcgn.runtime import Runtime
from skdcgn.training import Trainer


class Diverged(RuntimeError):
    """A loss is not a finite number any more."""


def evaluation_steps(steps: int, evaluations: int | Collection[float]) -> set[int]:
    """Return the steps to evaluate at: so many, evenly spaced up to `steps`, or those at fractions of the training."""
    if not isinstance(evaluations, int):
        return {max(1, round(steps * fraction)) for fraction in evaluations}
    return {round(steps * (index + 1) / evaluations) for index in range(evaluations)}


def train(
    trainer: Trainer,
    run: Run,
    runtime: Runtime,
    evaluate: Callable[[int], None],
    evaluate_at: Collection[int],
    description: str,
) -> None:
    """Train to the end, from the run's last checkpoint where it has one.

    Losses go to `loss/<term>`, the training's wall time to `cost/train_seconds`. The continuation of a killed run
    is the same, bit for bit, as if nothing had happened (on one machine and one thread count).

    Args:
        trainer: what to train.
        run: where everything is logged.
        runtime: how often to log and to write checkpoints.
        evaluate: called with the step; logs what it measures. It must draw from generators of its own.
        evaluate_at: the steps at which to do so.
        description: shown with the progress bar.

    Raises:
        Diverged: a loss is NaN or infinite; the message names the step and the loss.
        Interrupted: SIGINT or SIGTERM came in; a checkpoint was left.
    """
    seconds = 0.0
    state = distributed.broadcast(load_checkpoint(run.checkpoint) if run.leads else None)
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        seconds = state["seconds"]
    start = time.perf_counter() - seconds

    def save() -> None:
        run.flush()
        state = {"trainer": trainer.state_dict(), "seconds": time.perf_counter() - start}
        save_checkpoint(run.checkpoint, state | {"run_id": run.run_id})

    with run.interruption() as interruption, progress(description, "step", trainer.steps, trainer.step) as bar:
        for step, losses in trainer.fit():
            for name, value in losses.items():
                if not math.isfinite(value):
                    raise Diverged(f"loss {name!r} is {value} at step {step}")
            run.check_held()
            if step % runtime.log_every == 0 or step == 1:
                run.log_metrics("loss", losses, step)
            interruption.signum = distributed.any_of(interruption.signum)  # all processes end after the same step
            if step in evaluate_at and run.leads:
                evaluate(step)
            last = step == trainer.steps or interruption.signum is not None
            if run.leads and (last or step % runtime.checkpoint_every == 0):
                save()
            bar.update()
            interruption.check()
    run.log_metrics("cost", {"train_seconds": time.perf_counter() - start}, trainer.steps)


def progress(description: str, unit: str, total: int, initial: int = 0) -> tqdm:
    """A progress bar; where the output is no terminal, a line now and then."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=initial, desc=description, unit=unit, mininterval=interval)
