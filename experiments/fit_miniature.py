"""Fit the miniature ImageNet CGN to the CGN for Wildlife MNIST: a stand-in for the authors' 1.1 GB.

    python experiments/fit_miniature.py --out skdcgn/assets/miniature_cgn.safetensors   half an hour of one core
    python experiments/fit_miniature.py --profile smoke                                 a few steps of everything

The package has its result, so nobody needs to run this. Each part is a run of its own; finished ones are not fitted
again. The last run puts them together; its `final/*` is measured on noise that no fit saw.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from experiments.cases import Study, teacher_of
from experiments.presets import PROFILES
from skdcgn.commands.experiments import experiment
from skdcgn.configs.cgn import FITTED, FitConfig
from skdcgn.configs.fields import PositiveInt, Seed
from skdcgn.recipes.configs.cgns import MiniatureConfig, PartConfig
from skdcgn.recipes.configs.sources import MNISTTeacherConfig
from skdcgn.runs.identity import derive, overrides
from skdcgn.runs.plan import Case, Plan, RunConfig

DESCRIPTION = """The miniature ImageNet CGN (BigGAN-deep x4 and a U²-Net at 32x32, ten labels), each part fitted by
regression to what the CGN authors' Wildlife-MNIST CGN draws from the same noise."""

_LEARNS_FROM = {"u2net": ("f_shape", "biggan_GT")}
"""The parts whose pictures another part learns from."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Fit of the miniature ImageNet CGN, on the CPU."""

    fit: FitConfig
    seed: Seed = 0
    """Of initial weights and noise."""
    per_class: PositiveInt = 100
    """Images of each class that the miniature is scored on."""
    teacher: Path | None = None
    """Another checkpoint of the Wildlife-MNIST CGN than the authors'."""
    out: Path | None = None
    """A .safetensors file to write the miniature to as well; it is then put together again."""


DEFAULTS = {
    profile: Config(profile, FitConfig(3, 3, 3, 3, batch_size=8) if profile == "smoke" else FitConfig())
    for profile in PROFILES
}


def plan(config: Config) -> Plan:
    """Return a case for each part, and one that puts them together."""
    from skdcgn.recipes.cgns import make_miniature, make_part

    teacher_config = MNISTTeacherConfig("wildlife", config.teacher)
    changed = overrides(config, DEFAULTS[config.profile], ("seed", "teacher", "out"))
    tags = {"dataset": "wildlife", "seed": config.seed, "source": "miniature", "overrides": changed}
    teacher = teacher_of(teacher_config, config.profile, config.runtime)
    study = Study("fit_miniature", DESCRIPTION, tags).with_teacher(teacher)
    parts: dict[str, Case] = {}
    for part in FITTED:
        own = derive(PartConfig, config, teacher=teacher_config, part=part)
        needs = {name: parts[name] for name in _LEARNS_FROM.get(part, ())}
        seconds = 1 + 0.08 * config.fit.steps(part)
        parts[part] = study.case("part", part, own, make_part, needs, seconds=seconds, part=part)
    runtime = replace(config.runtime, force=config.runtime.force or config.out is not None)
    whole = derive(MiniatureConfig, config, teacher=teacher_config, runtime=runtime)
    assembled = study.case("miniature", "assemble", whole, make_miniature, parts, part="all")
    return Plan([*parts.values(), assembled], ("part",), runtime=config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
