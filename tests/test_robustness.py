"""Classifiers by the images that they learn from: the pieces, the experiment, and its table and figures."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import ood_robustness as ood_robustness_figures
from analysis.frame.published import CGN_PAPER, REPLICATION, ROBUSTNESS
from analysis.frame.style import cited, is_gap
from analysis.frame.view import View
from experiments import baseline_mnist, ood_robustness, train_cgn_mnist
from skdcgn import cli
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.data.mnist import make_dataset
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded
from skdcgn.recipes.ood_robustness import (
    counterfactual_images,
    generated_images,
    original_images,
    two_of_each_class,
    unbiased_sets,
)
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.networks import PUBLISHED_MNIST, TinyGANConfig, TinyGANGenerator


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_original_images_are_the_biased_ones_as_often_as_needed() -> None:
    data = make_dataset("digits", "train", seed=3)
    pixels, labels = original_images("digits").draw(3000, 3)
    assert pixels.shape == (3000, 3, 32, 32)
    assert torch.equal(pixels[: len(data)], data.pixels)
    assert torch.equal(pixels[len(data) : 2 * len(data)], data.pixels)
    assert torch.equal(labels, data.labels.repeat(3)[:3000])
    fewer, _ = original_images("digits").draw(10, 3)
    assert torch.equal(fewer, pixels[:10])


def test_counterfactual_images_have_the_shapes_label(random_teacher: MNISTTeacher) -> None:
    images = counterfactual_images(random_teacher, per_mask=5)
    pixels, labels = images.draw(20, 1)
    assert pixels.shape == (20, 3, 32, 32)
    assert (labels.view(4, 5) == labels[::5, None]).all()
    assert images.identity == random_teacher.sha256
    assert images.name == random_teacher.name


def test_generated_images_come_from_the_generator() -> None:
    with seeded(0, "generator"):
        generator = TinyGANGenerator(TinyGANConfig(width=2)).eval()
    images = generated_images(generator, "a GAN", "its run")
    assert (images.name, images.identity) == ("a GAN", "its run")
    (pixels, labels), (again, _) = images.draw(5, 0), images.draw(5, 0)
    assert pixels.shape == (5, 3, 32, 32)
    assert len(labels) == 5
    assert torch.equal(pixels, again)


def test_test_sets_are_unbiased_and_drifted_where_the_loader_drifts() -> None:
    sets = unbiased_sets("digits", seed=0)
    assert list(sets) == ["valid", "test", "valid_drifted", "test_drifted"]
    for split in ("valid", "test"):
        assert torch.equal(sets[split].strokes, sets[f"{split}_drifted"].strokes)
        assert not torch.equal(sets[split].pixels, sets[f"{split}_drifted"].pixels)
        assert torch.equal(sets[split].pixels, make_dataset("digits", split, 0, biased=False).pixels)


@pytest.mark.data
def test_other_variants_have_no_drifted_test_sets(data_dir: object) -> None:
    assert list(unbiased_sets("colored", seed=0)) == ["valid", "test"]


def test_two_of_each_class() -> None:
    labels = torch.tensor([2, 0, 0, 2, 2, 0, 0, 7])
    pixels = torch.arange(8)[:, None, None, None]
    images, classes = two_of_each_class(pixels, labels)
    assert classes.tolist() == [0, 2, 7, 0, 2, 7]
    assert images.flatten().tolist() == [1, 0, 7, 5, 3, 7]


def test_published_numbers() -> None:
    assert ROBUSTNESS["double_colored", "cgn"][CGN_PAPER] == (97.4, 89.0)
    assert ROBUSTNESS["wildlife", "cgn"][REPLICATION] == (95.5, 81.4)
    assert ("digits", "cgn") not in ROBUSTNESS


SMOKE = replace(ood_robustness.DEFAULTS["smoke"], datasets=("digits",), seeds=(0, 1), runtime=Runtime(device="cpu"))


@pytest.fixture
def cheap(random_teacher: MNISTTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher without a training, and a baseline of one step."""
    monkeypatch.setattr(train_cgn_mnist, "load_teacher", lambda *_: random_teacher)
    smoke = baseline_mnist.DEFAULTS["smoke"]
    brief = replace(smoke, training=replace(smoke.training, steps=1), counterfactuals=20, evaluations=1)
    monkeypatch.setitem(baseline_mnist.DEFAULTS, "smoke", brief)


def test_experiment_table_and_figures(cheap: None, store: run_store.Store, capsys: pytest.CaptureFixture[str]) -> None:
    results = ood_robustness.main(SMOKE)
    assert list(results.loc["digits"].index.unique("source")) == list(SMOKE.sources)
    assert len(results) == 2 * len(SMOKE.sources)
    assert results["test_drifted_accuracy"].between(0, 1).all()
    assert "paper" in capsys.readouterr().out

    runs = [run for run in store.search("ood_robustness") if run.data.tags.get("source") in SMOKE.sources]
    assert len(runs) == 2 * len(SMOKE.sources)
    for run in runs:
        assert run.info.status == "FINISHED"
        confusion = store.load_tensors(run.info.run_id, "confusion")
        assert set(confusion) == {"train", "valid", "test", "valid_drifted", "test_drifted"}
        assert confusion["train"].sum() == SMOKE.images
        assert confusion["test"].sum() == 250
        accuracy = (confusion["test"].trace() / confusion["test"].sum()).item()
        assert run.data.metrics["final/test_accuracy"] == pytest.approx(accuracy)
        by_class = store.load_tensors(run.info.run_id, "class_accuracy")["test"]
        torch.testing.assert_close(by_class, confusion["test"].diagonal() / confusion["test"].sum(dim=1))
    of_source = {run.data.tags["source"]: run.data.tags for run in runs}
    assert of_source["skdcgn"]["teacher"] == of_source["cgn"]["teacher"] == "random CGN"
    assert of_source["original"]["teacher"] == "none"

    again = ood_robustness.main(SMOKE)
    pd.testing.assert_frame_equal(again, results)
    assert capsys.readouterr().out.count("ood") == 0
    assert len([run for run in store.search("ood_robustness") if "source" in run.data.tags]) == len(runs) + 1  # a GAN

    shown = View(store, dataset="digits")
    table = ood_robustness_figures.table(shown)
    assert "stand-in" in table.title
    assert table.text.loc["SKDCGN 64x64", "train"] == "no finished run [1]"
    assert table.commands[0].endswith("--profile smoke --datasets digits --sources skdcgn_published")
    cell = table.cells[(table.cells["source"] == "CGN") & (table.cells["metric"] == "final/test_accuracy")].iloc[0]
    assert cell["n"] == 2
    assert cell["mean"] == pytest.approx(results.xs("cgn", level="source")["test_accuracy"].mean())
    assert "GAN, SKDCGN, baseline: one trained generator for all seeds" in " ".join(table.notes)
    for draw in (
        ood_robustness_figures.figure,
        ood_robustness_figures.class_figure,
        ood_robustness_figures.image_sheet,
    ):
        figure = draw(shown)
        assert not is_gap(figure)
        assert "smoke" in texts(figure)
        assert set(cited(figure)) == {run.info.run_id for run in runs}
        assert is_gap(draw(View(store, dataset="wildlife")))


def test_published_students_are_one_set_of_the_published_size(
    cheap: None, store: run_store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def distil(config: object) -> None:
        asked.append(config)
        tags = {"teacher_sha256": "t", "stand_in": True}
        with store.start("mnist_kd", config, "group", {"teacher": "t", "level": "group"}, tags) as group:
            for mechanism in Mechanism:
                child_tags = tags | {"mechanism": mechanism.value, "seed": 0}
                child = replace(config, mechanism=mechanism.value)
                with store.start("mnist_kd", child, "student", None, child_tags, group) as run:
                    if not run.finished:
                        run.log_student(TinyGANGenerator(TinyGANConfig(resolution=64, width=2, blocks=2)))

    monkeypatch.setattr(ood_robustness.mnist_kd, "main", distil)
    results = ood_robustness.main(replace(SMOKE, sources=("skdcgn_published",), images=20, generators=2))
    assert len(results) == 2
    assert {config.student for config in asked} == {PUBLISHED_MNIST}
    assert {config.seeds for config in asked} == {(0,)}
    assert ood_robustness.DEFAULTS["full"].published_students == "paper"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--images", "0"], "--images 0"),
        (["--generators", "0"], "--generators 0"),
        (["--runtime.device", "cuda:99"], "cpu or auto"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    store: run_store.Store, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    arguments = ["--profile", "smoke", "--datasets", "digits", *flags]
    with pytest.raises(SystemExit) as exit_:
        cli.entry(lambda: ood_robustness.main(cli.parse(ood_robustness.DEFAULTS, args=arguments)))
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
    assert not store.search("ood_robustness")
