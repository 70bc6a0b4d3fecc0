"""The paper's baseline: its CGN, its stages as runs, its figures and its table."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from analysis import baseline_cgn_tinygan as baseline_cgn_tinygan_figures
from analysis.frame import style
from analysis.frame.view import View
from experiments import baseline_cgn_tinygan, cases_imagenet
from skdcgn.cgn import baseline
from skdcgn.cgn.baseline import TinyGANImageNetCGN, UnconstrainedTeacher
from skdcgn.cgn.imagenet import MINIATURE, ImageNetCGN
from skdcgn.cgn.teachers import ImageNetTeacher
from skdcgn.cgn.u2net import SMALL_WIDTHS, U2Net
from skdcgn.configs.tinygan import NATIVE_MNIST
from skdcgn.data import labels as data_labels
from skdcgn.data import miniature as miniature_data
from skdcgn.data import weights
from skdcgn.errors import InputError, Interrupted
from skdcgn.measure.imagenet_cgn import counterfactual_inputs, measure_counterfactuals
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded, stream
from skdcgn.recipes import baseline_cgn_tinygan as baseline_cgn_tinygan_recipe
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.store import Store
from skdcgn.tinygan.distillation import DistillConfig, Distiller
from skdcgn.tinygan.losses import LossConfig, discriminator_terms, generator_terms
from skdcgn.tinygan.networks import TinyGANDiscriminator, TinyGANGenerator
from skdcgn.tinygan.records import FreshBatches, RealBatches
from skdcgn.training import state_digest

ARCHITECTURE = replace(NATIVE_MNIST, width=4)


@pytest.fixture(scope="module")
def miniature() -> ImageNetCGN:
    return ImageNetCGN(MINIATURE, stream(0, "miniature")).eval()


@pytest.fixture(scope="module")
def reference(miniature: ImageNetCGN) -> UnconstrainedTeacher:
    return UnconstrainedTeacher(miniature.biggan_GT, MINIATURE, "random BigGAN", 1.0, stand_in=True)


@pytest.fixture(scope="module")
def cgn() -> TinyGANImageNetCGN:
    with seeded(0, "baseline"):
        return TinyGANImageNetCGN.of(TinyGANGenerator(ARCHITECTURE), U2Net(SMALL_WIDTHS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder in which the brightness of an image is its label."""
    root = tmp_path_factory.mktemp("real images")
    for label in range(10):
        path = root / "train" / f"n{label:08d}"
        path.mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (40 + index, 32), (20 * label,) * 3).save(path / f"{index}.png")
    return root


# --- real images -----------------------------------------------------------------------------------------------------


def test_real_batches_are_labelled_sized_and_resumable(folder: Path, reference: UnconstrainedTeacher) -> None:
    batches = RealBatches(folder, reference, 6, stream(0, "real"))
    first = next(batches)
    assert first.images.shape == (6, 3, 32, 32)
    assert first.noise.shape == (6, 32)
    assert torch.allclose(first.images[:, 0, 0, 0], 20 * first.labels / 127.5 - 1, atol=1e-4)
    state = batches.state_dict()
    second = next(batches)
    again = RealBatches(folder / "train", reference, 6, stream(1, "other"))
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(second, next(again), strict=True))
    assert not torch.equal(first.noise, second.noise)


def test_wrong_real_images_are_refused(folder: Path, reference: UnconstrainedTeacher, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        RealBatches(tmp_path / "none", reference, 2, stream(0, "real"))
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "1.jpg")
    with pytest.raises(InputError, match="has 1 classes, but random BigGAN has 10"):
        RealBatches(tmp_path, reference, 2, stream(0, "real"))


def test_real_image_terms_by_hand() -> None:
    config = LossConfig(feature=0, lambda_1=1, lambda_2=0.5, real=0.2)
    scores = [torch.tensor([value]) for value in (2.0, 0.5, 0.25, -0.5)]
    terms = discriminator_terms(scores[0], scores[1], config, scores[2], scores[3])
    assert terms["discriminator"].item() == pytest.approx(0 + 1.5)
    assert terms["discriminator_real"].item() == pytest.approx(0.2 * (0.75 + 0.5))
    image = torch.zeros(1, 3, 2, 2)
    for adversarial in (True, False):
        terms = generator_terms(image, image, [], [], scores[1], config, 0, adversarial, scores[3])
        assert ("adversarial_real" in terms) == adversarial
    terms = generator_terms(image, image, [], [], scores[1], config, 0, True, scores[3])
    assert terms["adversarial_real"].item() == pytest.approx(0.2 * 0.5 * 0.5)
    assert LossConfig(feature=0, lambda_2=0, real=0.2).needs_discriminator
    with pytest.raises(InputError, match=r"^real is -1\.0"):
        LossConfig(real=-1.0)


def distiller(folder: Path, reference: UnconstrainedTeacher, loss: LossConfig, steps: int = 4) -> Distiller:
    with seeded(0, "distiller"):
        generator, discriminator = TinyGANGenerator(ARCHITECTURE), TinyGANDiscriminator(ARCHITECTURE, 4)
    batches = FreshBatches(reference, Mechanism.TEXTURE, 4, stream(0, "train"))
    real = RealBatches(folder, reference, 4, stream(0, "real")) if loss.real else None
    config = DistillConfig(steps=steps, batch_size=4, precision="fp32")
    return Distiller(generator, discriminator, batches, 4, config, loss, real=real)


def test_distiller_learns_from_real_images_and_resumes(folder: Path, reference: UnconstrainedTeacher) -> None:
    loss = LossConfig(real=0.2, n_critic=2)
    whole = distiller(folder, reference, loss)
    expected = dict(whole.fit())
    assert ["adversarial_real" in losses for losses in expected.values()] == [True, False, True, False]
    assert all("discriminator_real" in losses for losses in expected.values())
    first = distiller(folder, reference, loss)
    steps = first.fit()
    seen = dict(next(steps) for _ in range(3))
    second = distiller(folder, reference, loss)
    second.load_state_dict(first.state_dict())
    assert seen | dict(second.fit()) == expected
    plain = dict(distiller(folder, reference, LossConfig(n_critic=2)).fit())
    assert "discriminator_real" not in plain[1]
    assert plain[3]["discriminator"] != expected[3]["discriminator"]


def test_real_images_and_their_weight_go_together(folder: Path, reference: UnconstrainedTeacher) -> None:
    batches = FreshBatches(reference, Mechanism.TEXTURE, 4, stream(0, "train"))
    real = RealBatches(folder, reference, 4, stream(0, "real"))
    for loss, given, words in ((LossConfig(real=0.2), None, "needs real images"), (LossConfig(), real, "no weight")):
        with pytest.raises(ValueError, match=words):
            Distiller(
                TinyGANGenerator(ARCHITECTURE),
                TinyGANDiscriminator(ARCHITECTURE, 4),
                batches,
                1,
                DistillConfig(),
                loss,
                real=given,
            )


# --- the CGN and its measures ----------------------------------------------------------------------------------------


def test_cgn_starts_as_four_equal_generators_that_part(cgn: TinyGANImageNetCGN) -> None:
    noise, labels = torch.randn(2, 32, generator=stream(0, "noise")), torch.tensor([3, 5])
    cgn.eval()
    with torch.no_grad():
        pictures = [cgn.generate(name, noise, labels, 1.0) for name in ("biggan_GT", "f_shape", "f_text", "f_bg")]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    addresses = [p.data_ptr() for p in cgn.parameters()]
    assert len(set(addresses)) == len(addresses)
    learning = {name.split(".")[0] for name, p in cgn.named_parameters() if p.requires_grad}
    assert learning == {"f_shape", "f_text", "f_bg"}
    cgn.train()
    assert [part.training for part in (cgn.biggan_GT, cgn.u2net, cgn.f_shape)] == [False, False, True]


def test_baseline_file_keeps_everything(cgn: TinyGANImageNetCGN, tmp_path: Path) -> None:
    baseline.save_baseline(tmp_path / "cgn.safetensors", cgn)
    loaded = baseline.load_baseline(tmp_path / "cgn.safetensors")
    assert not loaded.f_shape.training
    assert loaded.architecture == ARCHITECTURE
    assert all(torch.equal(a, b) for a, b in zip(cgn.state_dict().values(), loaded.state_dict().values(), strict=True))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("other.safetensors", "missing.safetensors"):
        with pytest.raises(InputError, match="no baseline CGN"):
            baseline.load_baseline(tmp_path / name)


def test_trained_cgn_is_a_teacher(cgn: TinyGANImageNetCGN) -> None:
    teacher = ImageNetTeacher.of(cgn, "baseline", 1.0)
    noise, labels = teacher.sample_noise(3, stream(0, "noise")), torch.tensor([1, 2, 3])
    assert teacher.render(Mechanism.SHAPE, noise, labels).shape == (3, 1, 32, 32)
    assert teacher.render(Mechanism.TEXTURE, noise, labels).shape == (3, 3, 32, 32)
    shape, texture = (teacher.parameters(mechanism) for mechanism in (Mechanism.SHAPE, Mechanism.TEXTURE))
    assert shape > texture


def test_unconstrained_teacher_is_the_cgns_generator(miniature: ImageNetCGN, reference: UnconstrainedTeacher) -> None:
    noise, labels = reference.sample_noise(5, stream(0, "noise")), torch.arange(5)
    with torch.no_grad():
        expected = miniature.generate("biggan_GT", noise, labels, 1.0)
    assert torch.equal(reference.render(Mechanism.TEXTURE, noise, labels), expected)
    with pytest.raises(ValueError, match="no shape"):
        reference.render(Mechanism.SHAPE, noise, labels)
    other = UnconstrainedTeacher(miniature.biggan_GT, MINIATURE, "the same, truncated", 0.5)
    assert other.sha256 != reference.sha256


class Painted:
    """A source whose outputs are known: masks of a given share, plain textures and backgrounds."""

    name, sha256, stand_in, resolution, num_classes, noise_dim = "painted", "", True, 32, 10, 32

    def __init__(self, share: float) -> None:
        self.share = share

    def sample_noise(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(n, 32)

    def render(self, mechanism: Mechanism, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if mechanism is Mechanism.SHAPE:
            mask = torch.zeros(len(labels), 1, 32, 32)
            mask[..., : round(32 * self.share)] = 1
            return mask
        value = 0.5 if mechanism is Mechanism.TEXTURE else -0.5
        return value + 0.1 * noise[:, :1, None, None].sign().expand(-1, 3, 32, 32)

    def parameters(self, mechanism: Mechanism) -> int:
        return 1


@pytest.mark.parametrize(("share", "collapsed"), [(0.5, 0.0), (1 / 32, 1.0), (1.0, 1.0)])
def test_measures_of_known_counterfactuals(share: float, collapsed: float, reference: UnconstrainedTeacher) -> None:
    measured = measure_counterfactuals(Painted(share), reference, 40)
    assert measured["mask_share"] == pytest.approx(share)
    assert measured["mask_grey"] == 0
    assert measured["mask_collapsed"] == collapsed
    assert measured["pixel_variation_shape"] == 0
    assert 0.05 < measured["pixel_variation_texture"] < 0.15  # half of the pairs differ by 0.2
    if share == 1:
        assert measured["noise_energy"] == pytest.approx(0, abs=1e-6)


def test_counterfactuals_share_noise_and_permute_labels(reference: UnconstrainedTeacher) -> None:
    noise, labels = counterfactual_inputs(reference, 30)
    assert labels[Mechanism.SHAPE].tolist() == [*range(10)] * 3
    assert not torch.equal(labels[Mechanism.TEXTURE], labels[Mechanism.SHAPE])
    assert not torch.equal(labels[Mechanism.TEXTURE], labels[Mechanism.BACKGROUND])
    assert noise.shape == (30, 32)


@pytest.mark.parametrize(("count", "classes", "expected"), [(5, 3, [0, 1, 2, 0, 1]), (3, 1000, [0, 500, 999])])
def test_labels_are_spread(count: int, classes: int, expected: list[int]) -> None:
    assert data_labels.evenly_spread_labels(count, classes).tolist() == expected


# --- the experiment --------------------------------------------------------------------------------------------------


@pytest.fixture
def experiment(
    store: Store, miniature: ImageNetCGN, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> baseline_cgn_tinygan.Config:
    """The smoke config with a random miniature."""
    monkeypatch.setattr(
        baseline,
        "miniature_teacher",
        lambda device: ImageNetTeacher.of(miniature, "random miniature", 1.0, stand_in=True, device=device),
    )
    config = baseline_cgn_tinygan.DEFAULTS["smoke"]
    tinygan = replace(config.tinygan, architecture=ARCHITECTURE, distill=replace(config.tinygan.distill, steps=3))
    return replace(config, real_images=folder, tinygan=tinygan, sources=("baseline", "cgn"))


def run(config: baseline_cgn_tinygan.Config) -> pd.DataFrame:
    return carry_out(baseline_cgn_tinygan.plan(config))


def test_stages_run_once_and_feed_figures_and_table(experiment, store: Store, capsys) -> None:
    view = View(store)
    figures = [
        *baseline_cgn_tinygan_figures.figure_8(view).values(),
        baseline_cgn_tinygan_figures.figure_9(view),
        baseline_cgn_tinygan_figures.figure_10(view),
    ]
    assert all(style.is_gap(figure) for figure in figures)
    assert baseline_cgn_tinygan_figures.comparison(view).empty

    first = run(replace(experiment, stage="tinygan"))
    assert first.index.tolist() == [("tinygan", "baseline")]
    assert {"l1", "ssim", "parameters", "teacher_parameters"} <= set(first)
    capsys.readouterr()
    trained = run(replace(experiment, stage="cgn"))
    assert capsys.readouterr().out.count("finished before") == 1
    assert {"reconstruction", "mask_entropy", "mask_share", "background_saliency"} <= set(trained)
    table = run(experiment)
    assert capsys.readouterr().out.count("finished before") == 2
    kinds = [("tinygan", "baseline"), ("cgn", "baseline")]
    assert table.index.tolist() == [*kinds, ("counterfactuals", "baseline"), ("counterfactuals", "cgn")]
    assert table.loc["counterfactuals", "mask_share"].between(0, 1).all()
    assert run(experiment).equals(table)

    runs = store.runs("baseline_cgn_tinygan")
    assert sorted(each.tags["kind"] for each in runs) == ["cgn", "counterfactuals", "counterfactuals", "tinygan"]
    assert all(each.tags["stand_in"] == "true" for each in runs)
    (trained,) = store.runs("baseline_cgn_tinygan", kind="cgn")
    assert trained.tags["perceptual"] == "random"

    view = View(store)
    figures = [
        *baseline_cgn_tinygan_figures.figure_8(view).values(),
        baseline_cgn_tinygan_figures.figure_9(view),
        baseline_cgn_tinygan_figures.figure_10(view),
    ]
    assert not any(style.is_gap(figure) for figure in figures)
    assert all("stand-in" in figure.texts[0].get_text() for figure in figures)
    cells = baseline_cgn_tinygan_figures.comparison(view)
    assert "stand-in" in cells.title
    assert cells.text["SKDCGN"].str.startswith("no finished run").all()
    assert any("imagenet_kd" in command for command in cells.commands)


def test_killed_training_ends_as_the_unbroken_one(experiment, store: Store, monkeypatch) -> None:
    config = replace(experiment, stage="cgn", runtime=replace(experiment.runtime, checkpoint_every=1))
    update, calls = baseline_cgn_tinygan_recipe.ReconstructionTrainer.update, []

    def interrupted(self, batch):
        calls.append(self.step)
        if self.step == 2 and len(calls) == 3:
            raise Interrupted(15)
        return update(self, batch)

    monkeypatch.setattr(baseline_cgn_tinygan_recipe.ReconstructionTrainer, "update", interrupted)
    with pytest.raises(Interrupted):
        run(config)
    (killed,) = store.runs("baseline_cgn_tinygan", "KILLED")
    resumed = run(config).loc[("cgn", "baseline")]
    assert calls[3] == 2
    assert resumed["run_id"] == killed.run_id
    whole = run(replace(config, runtime=replace(config.runtime, force=True))).loc[("cgn", "baseline")]
    assert whole["run_id"] != killed.run_id
    assert whole.drop("run_id").equals(resumed.drop("run_id"))


def test_force_runs_the_asked_for_stage_again_but_not_earlier_ones(experiment) -> None:
    for stage, forced in (("cgn", ["cgn"]), ("all", ["tinygan", "cgn", "counterfactuals", "counterfactuals"])):
        config = replace(experiment, stage=stage, runtime=replace(experiment.runtime, force=True))
        cases = baseline_cgn_tinygan.plan(config).everything()
        assert [case.tags["kind"] for case in cases if case.config.runtime.force] == forced


def test_students_are_needed_where_their_counterfactuals_are_measured() -> None:
    cases = baseline_cgn_tinygan.plan(baseline_cgn_tinygan.DEFAULTS["smoke"]).everything()
    (measured,) = (
        case for case in cases if case.tags["source"] == "skdcgn" and case.name.startswith("counterfactuals")
    )
    assert (measured.needs["source"].experiment, measured.needs["source"].tags["kind"]) == ("imagenet_kd", "skdcgn")


def test_official_tinygan_takes_the_first_stages_place(experiment, store: Store, monkeypatch, tmp_path: Path) -> None:
    with seeded(0, "checkpoint"):
        generator = TinyGANGenerator(replace(ARCHITECTURE, label_input="none"))
    for module in ("skdcgn.tinygan.published", "skdcgn.recipes.baseline_cgn_tinygan"):
        monkeypatch.setattr(f"{module}.load_published_generator", lambda path, classes: generator)
    checkpoint = tmp_path / "model_18.tar"
    checkpoint.touch()
    config = replace(experiment, tinygan_checkpoint=checkpoint)
    assert run(replace(config, stage="cgn")).index.tolist() == [("cgn", "baseline")]
    assert not store.runs("baseline_cgn_tinygan", kind="tinygan")
    with pytest.raises(InputError, match="takes the place of stage tinygan"):
        baseline_cgn_tinygan.plan(replace(config, stage="tinygan"))


def test_real_images_are_made_for_the_miniature(experiment, store: Store, monkeypatch, folder: Path) -> None:
    made = []
    monkeypatch.setattr(miniature_data, "scenery", lambda fallback: (miniature_data.Composites(fallback()), "why"))
    monkeypatch.setattr(miniature_data, "real_images", lambda where, source: made.append(source.name) or folder)
    run(replace(experiment, stage="tinygan", real_images=None))
    assert made == ["composites of the random miniature"]
    assert store.runs("baseline_cgn_tinygan")[0].tags["real_images"] == "why"


def test_other_real_images_make_another_tinygan(experiment, folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    same, moved = (baseline_cgn_tinygan.plan(replace(experiment, real_images=each)) for each in (folder, other))
    assert same.cases[0].identity == moved.cases[0].identity
    next(other.rglob("*.png")).rename(other / "train" / "n00000000" / "new.png")
    changed = baseline_cgn_tinygan.plan(replace(experiment, real_images=other))
    assert changed.cases[0].identity.inputs["real_images"] != same.cases[0].identity.inputs["real_images"]


def test_bad_input_is_said(experiment, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = replace(experiment.tinygan, architecture=replace(ARCHITECTURE, resolution=64))
    for change, words in (
        ({"tinygan": wrong}, "does not fit"),
        ({"real_images": tmp_path / "none"}, "no folder"),
        ({"class_embedding": tmp_path / "no.npy"}, r"no\.npy"),
        ({"tinygan_checkpoint": tmp_path / "no.tar"}, r"no\.tar"),
    ):
        with pytest.raises(InputError, match=words):
            baseline_cgn_tinygan.plan(replace(experiment, **change))
    monkeypatch.setattr(weights, "status", lambda file: ("missing", ""))
    with pytest.raises(InputError, match="needs the ImageNet CGN"):
        baseline_cgn_tinygan.plan(baseline_cgn_tinygan.DEFAULTS["paper"])
    with pytest.raises(InputError, match="no ImageNet CGN at"):
        baseline_cgn_tinygan.plan(replace(baseline_cgn_tinygan.DEFAULTS["paper"], teacher=Path("nowhere.pth")))
    assert not store.runs("baseline_cgn_tinygan")


def test_real_images_are_needed_where_the_teacher_is_real(experiment, miniature: ImageNetCGN) -> None:
    config = replace(experiment, real_images=None)
    real = UnconstrainedTeacher(miniature.biggan_GT, MINIATURE, "BigGAN", 1.0)
    with pytest.raises(InputError, match="give --real-images"):
        cases_imagenet.baseline(config, config.parts.load()._replace(reference=real))


def test_parts_come_from_their_own_files_where_given(miniature: ImageNetCGN, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(weights, "status", lambda file: ("missing", ""))
    monkeypatch.setattr(baseline.imagenet, "CGN_256", MINIATURE)  # as if the files were full-sized
    torch.save(miniature.biggan_GT.state_dict(), tmp_path / "biggan.bin")
    torch.save(miniature.u2net.state_dict(), tmp_path / "u2net.pth")
    parts = baseline.load_parts(None, tmp_path / "biggan.bin", tmp_path / "u2net.pth", miniature=False, truncation=1.0)
    assert parts.teacher is None
    assert parts.reference.name == "biggan.bin"
    assert not parts.reference.stand_in
    assert state_digest(parts.load_u2net().state_dict()) == state_digest(miniature.u2net.state_dict())
