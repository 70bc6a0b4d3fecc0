"""Studies: one teacher and many students, each a run of its own below one run for the whole."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
from tqdm import tqdm

from skdcgn import distributed
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.recipes.profiles import Profile
from skdcgn.recipes.student import teacher_tags
from skdcgn.runs import follow
from skdcgn.runs import identity as run_identity
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.distillation import DistillConfig
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import TinyGANConfig


@dataclass(frozen=True)
class StudyConfig:
    """What every study of students has in its config; a study adds the field that it varies."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    student: TinyGANConfig
    distill: DistillConfig
    loss: LossConfig
    seeds: tuple[int, ...]
    """One student for each seed, mechanism and case of the study."""
    heldout_per_class: int
    """Held-out images of each class."""
    evaluations: int | tuple[float, ...] = 5
    """Held-out evaluations during a training: how many, or at which fractions of it."""
    dataset: Literal["double_colored", "colored", "wildlife", "digits"] = "double_colored"
    """Whose CGN is the teacher: the authors' one for an MNIST variant, or one trained here on scikit-learn's digits."""
    mechanism: Literal["shape", "texture", "background", "all"] = "all"
    """The mechanism to distil."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""
    runtime: Runtime = field(default_factory=Runtime)

    @property
    def mechanisms(self) -> list[Mechanism]:
        """The mechanisms that `mechanism` stands for."""
        return list(Mechanism) if self.mechanism == "all" else [Mechanism(self.mechanism)]


class Study:
    """The runs of one start of a script: a group, and below it a run for each student.

    Used as a context: the group's run is open inside.
    """

    def __init__(
        self,
        experiment: str,
        config: StudyConfig,
        default: StudyConfig,
        teacher: Source,
        store: run_store.Store,
        tags: Mapping[str, object],
        description: str,
        varies: str | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        """Describe a study.

        Args:
            experiment: name of the MLflow experiment: the script's stem.
            config: the resolved config.
            default: the config of its profile, see `tracking.overrides`.
            teacher: whose mechanisms are distilled.
            store: the run store.
            tags: of every run, beside the teacher's.
            description: markdown, shown in the UI.
            varies: the config's field that tells cases apart, where the study has any.
            identity: what stands for the contents of files that the config names, beside the teacher's.
        """
        self._store, self._experiment, self._config = store, experiment, config
        self._description, self._varies = description, varies
        self._identity = {"teacher": teacher.sha256, **(identity or {})}
        scope = ("dataset", "mechanism", "seeds", "teacher", *([varies] if varies else []))
        overrides = run_identity.overrides(config, default, scope)
        self._tags = {**teacher_tags(config.profile, config.dataset, teacher), "overrides": overrides, **tags}
        self._name = f"{config.dataset} {config.profile}"
        self._rows: list[dict[str, Any]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        identity = {**self._identity, "level": "group"}
        self.group = self._stack.enter_context(self._start(self._config, self._name, identity, self._tags, None))
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)

    @contextmanager
    def _start(
        self,
        config: StudyConfig,
        name: str,
        identity: Mapping[str, str],
        tags: Mapping[str, object],
        parent: run_module.Run | None,
    ) -> Iterator[run_module.Run]:
        """Start a run in process 0, and let the others follow it."""
        if distributed.rank():
            yield follow.follow(self._store)
            return
        with self._store.start(self._experiment, config, name, identity, tags, parent, self._description) as run:
            follow.lead(run)
            yield run

    @contextmanager
    def student(
        self,
        mechanism: Mechanism,
        seed: int,
        case: str | None = None,
        tags: Mapping[str, object] | None = None,
        **changes: object,
    ) -> Iterator[tuple[run_module.Run, Any]]:
        """Open the run of one student.

        Args:
            mechanism: which one it learns.
            seed: its seed.
            case: value of the field that the study varies.
            tags: of this run, beside the study's.
            changes: what the case means: other fields of the config.

        Yields:
            The run, to be left alone where it has finished before, and the student's own config.
        """
        told_apart = {self._varies: case} if self._varies else {}
        child = replace(self._config, mechanism=mechanism.value, seeds=(seed,), **told_apart, **changes)
        child_tags = {**self._tags, "mechanism": mechanism.value, "seed": seed, **told_apart, **(tags or {})}
        name = " ".join([mechanism.value, *told_apart.values(), f"seed {seed}"])
        with self._start(child, name, self._identity, child_tags, self.group) as run:
            if run.finished:
                tqdm.write(f"{self._name}, {name}: finished before (run {run.run_id}), skipped")
            yield run, child
        self._rows.append({"mechanism": mechanism.value, **told_apart, "seed": seed, **run.final})

    def results(self) -> pd.DataFrame:
        """Return the final metrics, a row for each student, indexed by what tells them apart."""
        index = ["mechanism", *([self._varies] if self._varies else []), "seed"]
        return pd.DataFrame(self._rows).set_index(index)

    def __str__(self) -> str:
        return self.results().to_string(float_format="%.4g", na_rep="")
