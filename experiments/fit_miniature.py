"""Fit the miniature ImageNet CGN to the CGN for Wildlife MNIST: a stand-in for the authors' 1.1 GB.

    python experiments/fit_miniature.py --out skdcgn/assets/miniature_cgn.safetensors   half an hour of one core
    python experiments/fit_miniature.py --profile smoke                                 a few steps of everything

The package has its result, so nobody needs to run this. Each part is a run of its own; finished ones are not fitted
again. `final/*` is measured on noise that no fit saw; the U²-Net and the statistics of truncation are fitted last.
"""

import json
import shlex
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from skdcgn.recipes.profiles import IMAGENET, Profile
from skdcgn.recipes.student import teacher_tags

from skdcgn import cli
from skdcgn.cgn import miniature
from skdcgn.cgn.imagenet import GENERATORS, MINIATURE, ImageNetCGN, Part
from skdcgn.cgn.teachers import MNISTTeacher, mnist_teacher
from skdcgn.data.labels import balanced_labels
from skdcgn.images import grid
from skdcgn.mechanisms import Mechanism, NoisePrior
from skdcgn.randomness import stream
from skdcgn.recipes import fit_miniature as fit_miniature_recipe
from skdcgn.runs import identity as run_identity
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runtime import Runtime, setup

DESCRIPTION = """The miniature ImageNet CGN (BigGAN-deep x4 and a U²-Net at 32x32, ten labels), each part fitted by
regression to what the CGN authors' Wildlife-MNIST CGN draws from the same noise."""

_TRUNCATION = 1.0
_PER_CLASS = 100


@dataclass(frozen=True)
class Config:
    """Fit of the miniature ImageNet CGN."""

    profile: Profile
    """Scale: smoke (tests); the others are alike."""
    fit: miniature.FitConfig
    seed: int = 0
    """Of initial weights and noise."""
    part: Literal["all", *miniature.FITTED] = "all"
    """Set by the script, in the run of each part."""
    teacher: Path | None = None
    """Another checkpoint of the Wildlife-MNIST CGN than the authors'."""
    out: Path | None = None
    """A .safetensors file to write the miniature to, beside the run store."""
    runtime: Runtime = field(default_factory=Runtime)


DEFAULTS = {name: Config(name, scale.fit) for name, scale in IMAGENET.items()}


def main(config: Config) -> dict[str, float]:
    """Fit every part that is not fitted yet, put them together, and return their scores."""
    setup(config.runtime)
    store = run_store.open_store()
    teacher = mnist_teacher("wildlife", config.teacher)
    cgn = ImageNetCGN(MINIATURE, stream(config.seed, "miniature"))
    overrides = run_identity.overrides(config, DEFAULTS[config.profile], ("seed", "part", "teacher", "out"))
    tags = {**teacher_tags(config.profile, "wildlife", teacher), "overrides": overrides, "seed": config.seed}
    identity = {"teacher": teacher.sha256}

    def start(part: str, parent: run_module.Run | None = None) -> AbstractContextManager[run_module.Run]:
        name = f"miniature {config.profile}" if parent is None else part
        child = replace(config, part=part)
        return store.start("fit_miniature", child, name, identity, {**tags, "part": part}, parent, DESCRIPTION)

    with start("all") as group:
        for part in miniature.FITTED:
            with start(part, group) as run:
                if not run.finished:
                    fit(run, cgn, part, teacher, config)
            cgn.get_submodule(part).load_state_dict(store.load_tensors(run.run_id, part))
            cgn.get_submodule(part).requires_grad_(False).eval()
        with tempfile.TemporaryDirectory() as folder:
            path = config.out or Path(folder) / "miniature_cgn.safetensors"
            miniature.save_miniature(path, cgn, {})
            stored = miniature.load_miniature(path)  # as users will get it, in half precision
            scores = fit_miniature_recipe.scores(stored, teacher, _TRUNCATION, _PER_CLASS)
            metadata = {
                "command": shlex.join(["python", "experiments/fit_miniature.py", *sys.argv[1:]]),
                "seed": str(config.seed),
                "fitted_to": f"{teacher.name}, SHA-256 {teacher.sha256}",
                "scores_on_unseen_noise": json.dumps({name: round(value, 4) for name, value in scores.items()}),
            }
            miniature.save_miniature(path, cgn, metadata)
            if not group.finished:
                group.log_metrics("final", scores)
                group.log_file(path)
    print("\n".join(f"{name:14} {value:.4f}" for name, value in scores.items()))
    return scores


def fit(run: run_module.Run, cgn: ImageNetCGN, part: Part, teacher: MNISTTeacher, config: Config) -> None:
    """Fit one part as a run, with pictures of teacher over miniature on the way; keep its weights."""
    trainer = miniature.regression(cgn, part, teacher, config.fit, config.seed)
    labels = balanced_labels(1, teacher.num_classes)
    noise = NoisePrior(_TRUNCATION).sample(len(labels), teacher.noise_dim, stream(config.seed, "sheet"))

    @torch.no_grad()
    def draw(step: int) -> None:
        trainer.network.eval()
        if part == "u2net":
            masks = cgn.u2net(miniature.target(teacher, "biggan_GT", noise, labels))
            rows = [teacher.render(Mechanism.SHAPE, noise, labels), masks]
            rows = [Mechanism.SHAPE.to_image(masks, 3) for masks in rows]
        else:
            rows = [
                miniature.target(teacher, part, noise, labels),
                cgn.generate(part, noise, labels, _TRUNCATION),
            ]
        run.log_image(f"{part}/teacher over miniature", grid(rows, scale=3), step)
        trainer.network.train()

    train(trainer, run, config.runtime, draw, evaluation_steps(trainer.steps, 5), part)
    if part in GENERATORS:
        miniature.measure_statistics(trainer.network, stream(config.seed, "statistics", part))
    trainer.network.eval()
    draw(trainer.steps + 1)
    run.log_tensors(part, trainer.network.state_dict())


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
