"""How a search of hyperparameters is put together: its study, and what its best trial is compared with."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.cases import students_study
from experiments.presets import SweepConfig
from skdcgn.configs.names import Mechanism, Profile
from skdcgn.recipes.configs.students import StudentConfig
from skdcgn.runs.identity import derive, identify

if TYPE_CHECKING:
    from skdcgn.recipes.sweep import DistillationSearch
    from skdcgn.runs.search.studies import Direction
    from skdcgn.runs.search.sweep import Params, Space


def search_of(
    experiment: str,
    config: SweepConfig,
    defaults: Mapping[Profile, SweepConfig],
    space: "Space",
    first: "Sequence[Params]",
    references: "Mapping[str, Params]",
    paper: str,
    description: str,
) -> "DistillationSearch":
    """Return a search; the student's parameters are a second objective where `space` has `student.width`.

    Args:
        experiment: the script's stem.
        config: of the script.
        defaults: the script's.
        space: what to search.
        first: parameters of the first trials.
        references: what to compare the best trial with, by name; the first one is the paper's.
        paper: where the paper speaks of it.
        description: of every run.

    Raises:
        InputError: the teacher's weights are not available, or a part of the config does not fit the teacher.
    """
    from skdcgn.recipes.sweep import DistillationSearch, make_trial
    from skdcgn.runs.search.sweep import Definition

    study = students_study(experiment, config, defaults, ("search", "confirm_seeds", "out"), paper, description)
    setting = derive(StudentConfig, config, teacher=config.teacher_config, frechet=False)
    directions: dict[str, Direction] = {"iou": "maximize"} if config.mechanism == "shape" else {"l1": "minimize"}
    if "student.width" in space:
        directions["parameters"] = "minimize"
    digests = {name: case.identity.digest for name, case in study.needs.items()}
    searched = hashlib.sha256(repr(sorted(space.items())).encode()).hexdigest()
    identity = identify(setting, make_trial, {**study.inputs, **digests, "search space": searched})
    default_name = f"{config.dataset} {config.profile} {config.mechanism} {identity.digest[:6]}"
    definition = Definition(
        experiment,
        default_name if config.search.study is None else config.search.study,
        space,
        directions,
        identity,
        first,
        # At first a setting's rank says little about its rank at the end.
        prune_from=config.distill.for_mechanism(Mechanism(config.mechanism)).steps // 2,
        tags={
            "profile": config.profile,
            "source": "skdcgn",
            "mechanism": config.mechanism,
            "seed": config.seed,
            **study.tags,
        },
        attributes={"seed": config.seed},
        description=description,
    )
    return DistillationSearch(
        definition, setting, config.search, references, config.confirm_seeds, study.needs, study.inputs, config.out
    )
