"""The paper's baseline: a CGN whose BigGANs are TinyGANs, trained without a teacher (Sec. 4.2, A.3, C; Fig. 8-10).

    python experiments/baseline_cgn_tinygan.py                         all stages on the miniature, two minutes
    python experiments/baseline_cgn_tinygan.py --stage cgn             that stage, and what it needs of earlier ones
    python experiments/baseline_cgn_tinygan.py --profile paper --real-images IMAGENET/train
    python experiments/baseline_cgn_tinygan.py --profile paper --tinygan-checkpoint model_18.tar

Stages: `tinygan` distils a TinyGAN from the unconstrained BigGAN, beside real images; `cgn` trains a CGN of three such
TinyGANs with CGN's own losses; `counterfactuals` measures its images beside those of CGN and of imagenet_kd's students.
Each is a run of its own. A finished one is not repeated, a killed one goes on where it stopped.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd
from skdcgn.recipes.profiles import BASELINE, IMAGENET, Profile
from skdcgn.recipes.student import teacher_tags
from tqdm import tqdm

from skdcgn import cli, runtime
from skdcgn.cgn import baseline
from skdcgn.cgn.baseline import TinyGANImageNetCGN
from skdcgn.cgn.teachers import ImageNetTeacher
from skdcgn.data import miniature as miniature_data
from skdcgn.files import sha256
from skdcgn.measure.features import extractor
from skdcgn.mechanisms import Source
from skdcgn.recipes import baseline_cgn_tinygan as baseline_cgn_tinygan_recipe
from skdcgn.recipes.baseline_cgn_tinygan import CGNRecipe, CounterfactualRecipe, TinyGANRecipe
from skdcgn.runs import identity as run_identity
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.networks import TinyGANGenerator, load_class_embedding
from skdcgn.tinygan.published import load_published_generator
from skdcgn.training import state_digest

DESCRIPTION = """The paper's baseline: CGN with TinyGAN generators, trained without a teacher (Sec. 4.2, A.3 and C).
Stage `tinygan` feeds **Figure 8**, `cgn` **Figure 9**, `counterfactuals` **Figure 10** and the table beside it."""

Stage = Literal["tinygan", "cgn", "counterfactuals"]


@dataclass(frozen=True)
class Config:
    """The baseline for ImageNet."""

    profile: Profile
    """Scale: smoke (tests) and quick (a first look) on the miniature, full (our best answer), paper (published)."""
    tinygan: TinyGANRecipe
    cgn: CGNRecipe
    counterfactuals: int
    """Counterfactuals of each source that are measured."""
    stage: Stage | Literal["all"] = "all"
    """The stage to run; what it needs of earlier ones is run first where that was not done before."""
    seed: int = 0
    """Of weights, noise and labels."""
    real_images: Path | None = None
    """ImageFolder of real images, such as ImageNet's train; the miniature's are made here where it is left out."""
    teacher: Path | None = None
    """Another file in the format of cgn.pth."""
    biggan: Path | None = None
    """BigGAN-deep-256 alone, in place of the teacher's biggan_GT."""
    u2net: Path | None = None
    """U²-Net alone, in place of the teacher's."""
    tinygan_checkpoint: Path | None = None
    """A TinyGAN of the authors (model_*.tar), in place of stage tinygan."""
    class_embedding: Path | None = None
    """A .npy file with the class embedding that the TinyGAN starts from, such as BigGAN's."""
    runtime: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True)
class StageConfig:
    """What decides the result of one run, beside the weights and images that it starts from."""

    profile: Profile
    stage: Stage
    seed: int
    recipe: TinyGANRecipe | CGNRecipe | CounterfactualRecipe
    runtime: Runtime


DEFAULTS = {
    name: Config(
        name,
        TinyGANRecipe(IMAGENET[name].student, scale.distill, scale.loss, heldout=scale.heldout),
        CGNRecipe(scale.training, heldout=scale.heldout),
        scale.counterfactuals,
    )
    for name, scale in BASELINE.items()
}


def main(config: Config) -> pd.DataFrame:
    """Run the stages that are not done yet; return the final metrics of the last, a row for each of its runs."""
    stages = Stages(config)
    with stages.group as group:
        run, tinygan = stages.tinygan(group)
        results = {"tinygan": run}
        if config.stage != "tinygan":
            run, cgn = stages.cgn(group, tinygan)
            results = {"cgn": run}
            if config.stage != "cgn":
                results = stages.counterfactuals(group, cgn)
    table = pd.DataFrame.from_dict({name: run.final for name, run in results.items() if run}, orient="index")
    print(table.T.to_string(float_format="%.4g", na_rep=""))
    return table


class Stages:
    """One start of the script: what its stages have in common."""

    def __init__(self, config: Config) -> None:
        self.config, self.device, self.store = config, runtime.setup(config.runtime), run_store.open_store()
        miniature = IMAGENET[config.profile].miniature
        truncation = config.cgn.training.truncation
        self.parts = baseline.load_parts(
            config.teacher, config.biggan, config.u2net, miniature, truncation, self.device
        )
        self.teacher, self.reference = self.parts.teacher, self.parts.reference
        self.extract = extractor(self.reference.resolution, self.device)
        self.tags = {
            **teacher_tags(config.profile, "miniature" if self.reference.stand_in else "imagenet", self.reference),
            "overrides": run_identity.overrides(config, DEFAULTS[config.profile], ("stage", "seed")),
            "seed": config.seed,
            "source": "baseline",
        }
        name, tags = f"baseline {config.profile}", self.tags | {"paper": "Sec. 4.2, C, Fig. 8-10"}
        identity = {"teacher": self.reference.sha256}
        self.group = self.store.start("baseline_cgn_tinygan", config, name, identity, tags, None, DESCRIPTION)

    def tinygan(self, group: run_module.Run) -> tuple[run_module.Run | None, TinyGANGenerator]:
        """Distil the TinyGAN, unless that was done before or a checkpoint takes its place."""
        config = self.config
        if config.tinygan_checkpoint is not None:
            return None, load_published_generator(config.tinygan_checkpoint, self.reference.num_classes)
        embedding, identity = None, {"teacher": self.reference.sha256}
        if config.class_embedding is not None:
            embedding = load_class_embedding(config.class_embedding, config.tinygan.architecture)
            identity["class_embedding"] = sha256(config.class_embedding)
        with self._run("tinygan", config.tinygan, identity, group, "Sec. A.3, Fig. 8") as run:
            if not run.finished:
                folder = config.real_images
                if folder is None and self.reference.stand_in and config.tinygan.loss.real:
                    scenery, reason = miniature_data.scenery(lambda: self.teacher)
                    folder = miniature_data.real_images(self.store.folder / "miniature_data", scenery)
                    run.set_tags({"real_images": reason})
                features = self.extract and self.extract.features
                baseline_cgn_tinygan_recipe.distil_unconstrained(
                    run, self.reference, config.tinygan, config.runtime, config.seed, folder, features, embedding
                )
        return run, self.store.load_student(run.run_id)

    def cgn(self, group: run_module.Run, tinygan: TinyGANGenerator) -> tuple[run_module.Run, TinyGANImageNetCGN]:
        """Train the CGN of TinyGANs, unless that was done before."""
        config, u2net = self.config, self.parts.load_u2net()
        identity = {"tinygan": state_digest(tinygan.state_dict()), "u2net": state_digest(u2net.state_dict())}
        with self._run("cgn", config.cgn, identity, group, "Sec. 4.2, Fig. 9") as run:
            if not run.finished:
                cgn = TinyGANImageNetCGN.of(tinygan, u2net)
                baseline_cgn_tinygan_recipe.train_baseline(
                    run, cgn, config.cgn, config.runtime, config.seed, self.device
                )
        with self.store.artifact(run.run_id, "cgn.safetensors") as path:
            return run, baseline.load_baseline(path)

    def counterfactuals(self, group: run_module.Run, cgn: TinyGANImageNetCGN) -> dict[str, run_module.Run]:
        """Measure the counterfactuals of every source there is, unless that was done before."""
        truncation, stand_in = self.reference.truncation, self.reference.stand_in
        sources: dict[str, Source | None] = {
            "baseline": ImageNetTeacher.of(cgn, "CGN of TinyGANs", truncation, stand_in, self.device),
            "cgn": self.teacher,
            "skdcgn": baseline_cgn_tinygan_recipe.find_students(
                self.store, self.config.profile, self.teacher, self.device
            ),
        }
        runs = {}
        for name, source in sources.items():
            if source is None:
                tqdm.write(f"nothing to measure for {name}: no finished students of experiments/imagenet_kd.py")
                continue
            identity = {"source": source.sha256, "teacher": self.reference.sha256}
            recipe = CounterfactualRecipe(name, self.config.counterfactuals)
            with self._run("counterfactuals", recipe, identity, group, "Sec. 4.2, Fig. 10", name) as runs[name]:
                if not runs[name].finished:
                    baseline_cgn_tinygan_recipe.measure_run(
                        runs[name], source, self.parts, recipe, self.extract, self.device
                    )
        return runs

    def _run(
        self, stage: Stage, recipe, identity: dict[str, str], group: run_module.Run, paper: str, source="baseline"
    ):
        config = self.config
        again = config.runtime.force and config.stage in (stage, "all")
        child = StageConfig(config.profile, stage, config.seed, recipe, replace(config.runtime, force=again))
        name = stage if stage != "counterfactuals" else f"{stage} {source}"
        tags = self.tags | {"stage": stage, "paper": paper, "source": source}
        return self.store.start("baseline_cgn_tinygan", child, name, identity, tags, group, DESCRIPTION)


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
