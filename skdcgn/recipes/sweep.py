"""Searches of hyperparameters: Optuna in process, over typed configs, with its studies in the run store.

A study is an MLflow run and its trials are runs below that one, into which the trials log what every training logs:
there is no second record of a trial. Any number of processes, on any number of machines that reach the store, work
on a study at the same time and may die at any time.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import yaml

from skdcgn.errors import InputError
from skdcgn.files import atomic_path
from skdcgn.measure.statistics import mean_interval
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.recipes.profiles import MNIST, Profile
from skdcgn.recipes.student import distil, teacher_tags
from skdcgn.runs import identity as run_identity
from skdcgn.runs import provenance
from skdcgn.runs import store as run_store
from skdcgn.runs.run import Run
from skdcgn.runs.search import Config, Direction, Params, Report, SearchConfig, Space, Sweep, _shown, apply
from skdcgn.runtime import Runtime
from skdcgn.tinygan.distillation import DistillConfig
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import TinyGANConfig

_SCOPE = ("dataset", "mechanism", "teacher", "search", "confirm_seeds", "out")  # what to run, rather than how


# --- sweeps of distillations


@dataclass(frozen=True)
class SweepConfig:
    """Search of a distillation's hyperparameters; what is not searched stays as it is here."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    student: TinyGANConfig
    distill: DistillConfig
    loss: LossConfig
    evaluations: int
    """Held-out evaluations during a training: where hopeless trials are stopped."""
    heldout_per_class: int
    """Held-out images of each class."""
    search: SearchConfig
    confirm_seeds: tuple[int, ...]
    """Fresh seeds, on which the best trial is trained again beside the paper's values."""
    dataset: Literal["double_colored", "colored", "wildlife", "digits"] = "double_colored"
    """Whose CGN is the teacher: the authors' one for an MNIST variant, or one trained here on scikit-learn's digits."""
    mechanism: Literal["shape", "texture", "background"] = "shape"
    """The mechanism to distil; the objective is held-out IoU for shape, held-out L1 for the others."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""
    seed: int = 0
    """Of every trial's training: one for all, so that trials differ by their parameters alone."""
    out: Path | None = None
    """Folder that gets best.yaml, trials.csv and confirmation.csv, as the study's run does."""
    runtime: Runtime = field(default_factory=Runtime)


def defaults(config_class: type[Config]) -> dict[Profile, Config]:
    """Return the defaults of a `SweepConfig` at each profile: the paper's loss, students small enough for many."""
    return {
        name: config_class(
            profile=name,
            student=scale.student,
            distill=scale.sweep,
            loss=LossConfig(),
            evaluations=scale.sweep_evaluations,
            heldout_per_class=min(scale.heldout_per_class, 50),
            search=SearchConfig(trials=scale.sweep_trials),
            confirm_seeds=scale.sweep_confirm_seeds,
        )
        for name, scale in MNIST.items()
    }


def sweep_distillation(
    config: SweepConfig,
    experiment: str,
    teacher: Source,
    device: torch.device,
    space: Space,
    first: Sequence[Params],
    references: Mapping[str, Params],
    paper: str,
    description: str,
    say: Callable[[str], object],
) -> pd.DataFrame | None:
    """Search, then hold the best trial against reference settings on fresh seeds.

    Where `space` has `student.width`, the student's parameters are a second objective.

    Args:
        config: of the script.
        experiment: of the script.
        teacher: the black box.
        device: where to run.
        space: what to search.
        first: parameters of the first trials.
        references: what to hold the best against, by name; the first one is the paper's.
        paper: where the paper speaks of it.
        description: markdown, shown in the UI with the experiment and its runs.
        say: told what happens, line by line.

    Returns:
        The confirmation, a row for each (setting, seed); None where other workers have not finished yet.

    Raises:
        InputError: see `Sweep`, or the confirmation has no fresh seeds.
    """
    if not config.confirm_seeds or config.seed in config.confirm_seeds:
        raise InputError(f"--confirm-seeds needs seeds that no trial was trained with: others than {config.seed}.")
    store = run_store.open_store()
    mechanism = Mechanism(config.mechanism)
    metric = "iou" if mechanism is Mechanism.SHAPE else "l1"
    directions: dict[str, Direction] = {metric: "maximize" if metric == "iou" else "minimize"}
    if "student.width" in space:
        directions["parameters"] = "minimize"
    setting = replace(config, search=SearchConfig(), confirm_seeds=())
    identity = {"teacher": teacher.sha256}
    digest = run_identity.config_hash(setting, {**identity, "space": repr(sorted(space.items()))})
    name = config.search.study or f"{config.dataset} {config.profile} {mechanism} {digest[:6]}"
    tags = {**teacher_tags(config.profile, config.dataset, teacher), "mechanism": mechanism.value}
    tags |= {"seed": config.seed, "source": "skdcgn", "paper": paper}
    tags["overrides"] = run_identity.overrides(config, defaults(type(config))[config.profile], _SCOPE)
    attributes = {"seed": config.seed}
    steps = config.distill.for_mechanism(mechanism).steps
    # At first a setting's rank says little about its rank at the end.
    sweep = Sweep(store, experiment, name, space, first, directions, config.search, digest, steps // 2, attributes)
    store.experiment(experiment, description)
    origin = provenance.provenance(experiment, description)
    sweep.run.set_tags({**tags, "phase": "study", **origin})
    say(f"study {name!r}: {config.search.trials} trials")

    def objective(run: Run, params: Params, report: Report | None) -> list[float]:
        trial = apply(setting, params)
        run.set_tags({**tags, **origin})
        _keep(run, {"config.yaml": as_file(trial, params)})

        def on_evaluation(step: int, measured: dict[str, float]) -> None:
            if report is not None and step < steps:
                report(step, measured[metric])

        distil(run, teacher, mechanism, trial, config.seed, device, on_evaluation=on_evaluation)
        run.flush()
        return [run.final[name] for name in directions]

    if not sweep.work(objective, say):
        say("other workers are still at their trials: the last of them, or the next start, confirms the best.")
        return None
    best = sweep.best()
    settings = {name: apply(setting, params) for name, params in {**references, "best": best.params}.items()}
    with store.start(
        experiment,
        replace(setting, confirm_seeds=config.confirm_seeds),
        f"{name}: confirmation",
        {**identity, "study": name, "best": _shown(best.params)},
        {**tags, "phase": "confirmation", "study": name},
        description=description,
    ) as group:
        rows = []
        for seed in config.confirm_seeds:
            for label, chosen in settings.items():
                trained = replace(chosen, seed=seed)
                run_tags = {**tags, "phase": "confirm", "seed": seed}
                run_name = f"{name}: {label}, seed {seed}"
                with store.start(experiment, trained, run_name, identity, run_tags, group, description) as run:
                    if not run.finished:
                        distil(run, teacher, mechanism, trained, seed, device)
                rows.append({"setting": label, "seed": seed, metric: run.final[metric], "run_id": run.run_id})
        confirmed = pd.DataFrame(rows)
        verdict = compare(confirmed, metric, directions[metric])
        text = as_file(settings["best"], best.params, f"Trial {best.number} of the study {name!r}.\n{verdict}")
        files = {"best.yaml": text, "trials.csv": _csv(sweep.table()), "confirmation.csv": _csv(confirmed)}
        if not group.finished:
            _keep(group, files)
        _keep(sweep.run, files)
        for file, content in files.items() if config.out else ():
            with atomic_path(config.out / file) as temporary:
                temporary.write_text(content, encoding="utf-8")
    sweep.end()
    say(verdict)
    return confirmed


def compare(confirmed: pd.DataFrame, metric: str, direction: Direction) -> str:
    """Say in words how the best trial fares against each other setting, paired by seed.

    Args:
        confirmed: columns setting ("best" and others), seed, and the metric.
        metric: the objective.
        direction: of the metric.

    Returns:
        A line for each other setting.
    """
    values = confirmed.pivot(index="seed", columns="setting", values=metric)
    lines = []
    for other in [name for name in confirmed["setting"].unique() if name != "best"]:
        gain = values["best"] - values[other] if direction == "maximize" else values[other] - values["best"]
        mean, low, high, n = mean_interval(gain.tolist())
        if not gain.any():
            lines.append(f"The best trial is {other} itself: {metric} {values['best'].mean():.4f} on fresh seeds.")
            continue
        word = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
        lines.append(
            f"On fresh seeds the best trial is {word} {other}: {metric} {values['best'].mean():.4f} against "
            f"{values[other].mean():.4f}, gain {mean:+.4f} [{low:+.4f}, {high:+.4f}] (95 % interval, n={n})."
        )
    return "\n".join(lines)


def as_file(config: SweepConfig, params: Params, comment: str = "") -> str:
    """Write what a search chose as YAML that every distilling script accepts with `--config`.

    It has the whole objective, since a weight means little without the others, and the other fields searched.
    """
    content: dict[str, Any] = {"loss": dataclasses.asdict(config.loss)}
    for name in params:
        section, _, key = name.rpartition(".")
        content.setdefault(section, {})[key] = getattr(getattr(config, section), key)
    content["loss"]["alphas"] = list(config.loss.alphas)
    return "".join(f"# {line}\n" for line in comment.splitlines()) + yaml.safe_dump(content, sort_keys=False)


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.6g")


def _keep(run: Run, files: Mapping[str, str]) -> None:
    """Keep texts as files of a run."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8")
            run.log_file(path)
