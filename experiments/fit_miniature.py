"""Fit the miniature ImageNet CGN to the CGN for Wildlife MNIST: a stand-in for the authors' 1.1 GB.

    python experiments/fit_miniature.py --out skdcgn/assets/miniature_cgn.safetensors   half an hour of one core
    python experiments/fit_miniature.py --profile smoke                                 a few steps of everything

The package has its result, so nobody needs to run this. Each part is a run of its own; finished ones are not fitted
again. The last run puts them together; its `final/*` is measured on noise that no fit saw.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.cases import teacher_of
from experiments.presets import PROFILES
from skdcgn.cgn.miniature import FITTED, FitConfig
from skdcgn.cli import Profile
from skdcgn.commands import experiment
from skdcgn.recipes.cgns import MiniatureConfig, PartConfig, make_miniature, make_part
from skdcgn.recipes.sources import MNISTTeacherConfig
from skdcgn.runs.identity import overrides
from skdcgn.runs.lifecycle import Case, Plan
from skdcgn.runtime import Runtime

DESCRIPTION = """The miniature ImageNet CGN (BigGAN-deep x4 and a U²-Net at 32x32, ten labels), each part fitted by
regression to what the CGN authors' Wildlife-MNIST CGN draws from the same noise."""

_LEARNS_FROM = {"u2net": ("f_shape", "biggan_GT")}
"""The parts whose pictures another part learns from."""


@dataclass(frozen=True)
class Config:
    """Fit of the miniature ImageNet CGN, on the CPU."""

    profile: Profile
    """Scale: smoke (tests); the others are alike."""
    fit: FitConfig
    seed: int = 0
    """Of initial weights and noise."""
    per_class: int = 100
    """Images of each class that the miniature is scored on."""
    teacher: Path | None = None
    """Another checkpoint of the Wildlife-MNIST CGN than the authors'."""
    out: Path | None = None
    """A .safetensors file to write the miniature to as well; it is then put together again."""
    runtime: Runtime = field(default_factory=Runtime)


DEFAULTS = {
    profile: Config(profile, FitConfig(3, 3, 3, 3, batch_size=8) if profile == "smoke" else FitConfig())
    for profile in PROFILES
}


def plan(config: Config) -> Plan:
    """Return a case for each part, and one that puts them together."""
    teacher = teacher_of(MNISTTeacherConfig("wildlife", config.teacher), config.profile, config.runtime)
    changed = overrides(config, DEFAULTS[config.profile], ("seed", "teacher", "out"))
    common = {"profile": config.profile, "dataset": "wildlife", **teacher.tags, "seed": config.seed}
    tags = {"kind": "part", **common, "source": "miniature", "overrides": changed}
    parts: dict[str, Case] = {}
    for part in FITTED:
        parts[part] = Case(
            "fit_miniature",
            part,
            PartConfig(config.profile, teacher.config, part, config.fit, config.seed, config.runtime),
            make_part,
            {**tags, "part": part},
            {name: parts[name] for name in _LEARNS_FROM.get(part, ())},
            teacher.inputs,
            seconds=1 + 0.08 * config.fit.steps(part),
            description=DESCRIPTION,
        )
    runtime = replace(config.runtime, force=config.runtime.force or config.out is not None)
    assembled = Case(
        "fit_miniature",
        "assemble",
        MiniatureConfig(config.profile, teacher.config, config.seed, config.per_class, config.out, runtime),
        make_miniature,
        {**tags, "kind": "miniature", "part": "all"},
        parts,
        teacher.inputs,
        description=DESCRIPTION,
    )
    return Plan([*parts.values(), assembled], ("part",), runtime=config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
