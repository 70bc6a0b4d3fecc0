"""ImageNet distillation: the script at smoke scale, its figures, and class subsets."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_cgn_imagenet import write_full_checkpoint

from analysis import imagenet_kd as imagenet_kd_figures
from analysis.frame import style
from analysis.frame.view import View
from experiments import imagenet_kd
from experiments.cases_imagenet import objectives
from skdcgn.cgn.teachers import miniature
from skdcgn.configs.tinygan import PUBLISHED_IMAGENET
from skdcgn.measure import cost
from skdcgn.measure.heldout import HeldOut
from skdcgn.mechanisms import Mechanism, compose
from skdcgn.randomness import stream
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.store import RunRecord, Store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.distillation import DistillConfig
from skdcgn.tinygan.losses import LossConfig

SMOKE = replace(
    imagenet_kd.DEFAULTS["smoke"],
    distill=replace(imagenet_kd.DEFAULTS["smoke"].distill, steps=4),
    runtime=Runtime(threads=1),
)


def run(config: imagenet_kd.DistillationConfig) -> pd.DataFrame:
    return carry_out(imagenet_kd.plan(config))


def students(store: Store) -> list[RunRecord]:
    return store.runs("imagenet_kd", kind="student")


def test_the_paper_s_setting_is_the_paper_s() -> None:
    paper = imagenet_kd.DEFAULTS["paper"]
    assert paper.dataset == "imagenet"
    assert paper.student == PUBLISHED_IMAGENET
    assert (paper.student.resolution, paper.student.width, paper.student.blocks) == (256, 32, 5)
    assert paper.distill == DistillConfig(steps=30 * 31_250, batch_size=32)
    assert (paper.distill.learning_rate, paper.distill.betas) == (2e-4, (0.0, 0.9))
    assert paper.loss == LossConfig()
    assert [imagenet_kd.DEFAULTS[profile].dataset for profile in ("smoke", "quick", "full")] == [
        "miniature",
        "miniature",
        "imagenet",
    ]


def test_masks_are_distilled_with_and_without_kl_and_the_profile_s_own_comes_last() -> None:
    with_kl, without = replace(SMOKE, loss=LossConfig(kl=0.5)), replace(SMOKE, loss=LossConfig())
    names = {m: list(objectives(with_kl, m)) for m in Mechanism}
    assert names == {"shape": ["no_kl", "kl"], "texture": ["kl"], "background": ["kl"]}
    assert list(objectives(without, Mechanism.SHAPE)) == ["kl", "no_kl"]
    weights = [objectives(config, Mechanism.SHAPE)["kl"].kl for config in (with_kl, without)]
    assert weights == [0.5, 1.0]
    only = replace(with_kl, objective="no_kl")
    assert {name: loss.kl for name, loss in objectives(only, Mechanism.TEXTURE).items()} == {"no_kl": 0}


def test_the_script_and_its_figures(store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    drawn = (
        imagenet_kd_figures.figure_2(View(store))
        | imagenet_kd_figures.figure_6(View(store))
        | imagenet_kd_figures.figure_15(View(store))
    )
    assert len(drawn) == 5
    assert all(style.is_gap(figure) for figure in drawn.values())
    assert "python experiments/imagenet_kd.py --mechanism shape" in _texts(drawn["figure_15"])

    table = run(SMOKE)
    own = {("student", mechanism.value, "kl", 0) for mechanism in Mechanism}
    assert set(table.index) == own | {("student", "shape", "no_kl", 0), ("skdcgn", "", "kl", 0)}
    trained = table[table["parameters"].notna()]
    assert len(trained) == 4
    assert (trained["parameters"] < trained["teacher_parameters"]).all()
    for student in students(store):
        tags = student.tags
        assert student.status == "FINISHED"
        assert (tags["dataset"], tags["stand_in"], tags["classes"]) == ("miniature", "true", "all")
        assert "miniature" in tags["teacher"]
        assert tags["overrides"] == ("loss.kl=0.0" if tags["objective"] == "no_kl" else "distill.steps=4")
        assert ("loss/kl" in student.metrics) == (tags["objective"] == "kl")
        assert student.final["frechet"] > 0
    (composed,) = store.runs("imagenet_kd", kind="skdcgn")
    kept = store.load_tensors(composed.run_id, "counterfactuals")
    assert kept["teacher"].shape == kept["student"].shape == (20, 3, 32, 32)
    assert sorted(kept["labels_texture"].tolist()) == sorted(kept["labels_shape"].tolist())
    assert kept["labels_texture"].tolist() != kept["labels_shape"].tolist()
    assert kept["mask_teacher"].shape == (20, 1, 32, 32)

    drawn = (
        imagenet_kd_figures.figure_2(View(store))
        | imagenet_kd_figures.figure_6(View(store))
        | imagenet_kd_figures.figure_15(View(store))
    )
    for name, figure in drawn.items():
        assert not style.is_gap(figure), name
        assert "stand-in: a miniature" in _texts(figure)
        assert style.save(figure, name, tmp_path).stat().st_size > 5000

    capsys.readouterr()
    assert run(SMOKE).equals(table)
    assert capsys.readouterr().out.count("finished before") == 5
    assert len(store.runs("imagenet_kd")) == 5


def _texts(figure) -> str:
    texts = [text.get_text() for text in figure.texts]
    return " ".join(" ".join(texts + [text.get_text() for axes in figure.axes for text in axes.texts]).split())


def test_logged_masks_are_read_back_exactly(store: Store) -> None:
    run(replace(SMOKE, mechanism="shape", objective="kl"))
    shown = View(store).only("imagenet_kd", kind="student")
    teacher, student = View(store).held_out(shown, 30)
    samples = store.load_tensors(shown["run_id"], "samples")
    for images, name in ((teacher, "teacher"), (student, "student")):
        assert images.shape == (10, 1, 32, 32)
        assert (images - (2 * samples[name][:10] - 1)).abs().max() <= 1 / 255 + 1e-4


def test_only_the_classes_asked_for_are_learnt(store: Store) -> None:
    run(replace(SMOKE, mechanism="texture", classes="1,4-5"))
    (student,) = students(store)
    assert student.tags["overrides"] == "distill.steps=4, classes=1,4-5"
    samples = store.load_tensors(student.run_id, "samples")
    assert samples["labels"].tolist() == [1, 4, 5, 1, 4, 5]
    (index,) = (store.folder / "teacher_sets").rglob("set.json")
    assert list(json.loads(index.read_text())["shards"]) == [f"class-000{i}.safetensors" for i in (1, 4, 5)]


def test_an_excerpt_shows_classes_from_everywhere() -> None:
    teacher = miniature(stream(0, "test"))
    heldout = HeldOut.unseen(teacher, Mechanism.SHAPE, 1)
    assert heldout.excerpt(20).labels.tolist() == list(range(10))
    assert heldout.excerpt(4).labels.tolist() == [0, 3, 6, 9]
    few = heldout.excerpt(4)
    torch.testing.assert_close(few.teacher, teacher.render(Mechanism.SHAPE, few.noise, few.labels))
    twice = HeldOut.unseen(teacher, Mechanism.SHAPE, 3)
    assert twice.excerpt(20).labels.tolist() == 2 * list(range(10))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--profile", "paper"), "python -m skdcgn weights says how to get them"),
        (("--profile", "smoke", "--teacher", "cgn.pth"), "leave --teacher out"),
        (("--profile", "full", "--dataset", "miniature"), "does not fit miniature"),
        (("--profile", "full", "--teacher", "absent.pth"), "no ImageNet CGN at absent.pth"),
        (("--profile", "smoke", "--classes", "dogs"), "cannot be read"),
        (("--profile", "smoke", "--classes", "best"), "this teacher has 10"),
        (("--profile", "smoke", "--truncation", "1.5"), "truncation"),
        (("--profile", "smoke", "--class-embedding", "no.npy"), "no.npy is not a readable"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    assert words in refusal(imagenet_kd, *arguments)


def test_counterfactuals_are_composed_by_eq_1_of_the_classes_learned(store: Store) -> None:
    run(replace(SMOKE, classes="0,2,9"))
    (composed,) = store.runs("imagenet_kd", kind="skdcgn")
    kept = store.load_tensors(composed.run_id, "counterfactuals")
    labels = {mechanism: kept[f"labels_{mechanism}"] for mechanism in Mechanism}
    assert set(labels[Mechanism.BACKGROUND].tolist()) == {0, 2, 9}
    teacher = imagenet_kd.plan(SMOKE).cases[-1].config.teacher.load()
    noise = {}
    for mechanism in Mechanism:
        random = stream(0, "figure 6", mechanism)
        if mechanism is not Mechanism.SHAPE:
            torch.randperm(20, generator=random)
        noise[mechanism] = teacher.sample_noise(20, random)
    outputs = [teacher.render(mechanism, noise[mechanism], labels[mechanism]) for mechanism in Mechanism]
    assert torch.equal(kept["teacher"], compose(*outputs))
    assert torch.equal(kept["mask_teacher"], outputs[0])


@pytest.mark.slow
@pytest.mark.data
def test_the_real_path_at_full_size(
    store: Store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script on a file with the names, shapes and size of the real `cgn.pth`, in the paper's setting but short."""
    manifest = json.loads((data_dir / "manifests" / "cgn_imagenet.json").read_text())
    monkeypatch.setattr(cost, "latency_ms", lambda _: 1.0)  # 64 images at a time take minutes on a CPU
    paper = imagenet_kd.DEFAULTS["paper"]
    config = replace(
        paper,
        distill=replace(paper.distill, steps=2, batch_size=2, per_class=2),
        teacher=write_full_checkpoint(manifest, tmp_path),
        mechanism="texture",
        classes="5,700",
        evaluations=(1.0,),
        runtime=Runtime(threads=1),
    )
    run(config)
    (student,) = students(store)
    assert (student.tags["stand_in"], student.tags["dataset"]) == ("false", "imagenet")
    assert student.final["parameters"] == 6_240_963
    assert student.final["teacher_parameters"] == 55_880_833
    assert {"loss/feature", "loss/pixel", "loss/discriminator"} <= set(student.metrics)
    samples = store.load_tensors(student.run_id, "samples")
    assert samples["student"].shape == samples["teacher"].shape == (2, 3, 256, 256)
    assert samples["labels"].tolist() == [5, 700]
    title = _texts(imagenet_kd_figures.figure_2(View(store))["figure_2b_texture"])
    assert "miniature" not in title
    config.teacher.unlink()
