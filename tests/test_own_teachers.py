"""Teachers of our own: the one in the package, `train_cgn_mnist.py`, and the baseline with TinyGAN generators."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from analysis import train_cgn_mnist as train_cgn_mnist_figures
from analysis.frame.style import cited, is_gap
from analysis.frame.view import View
from experiments import baseline_mnist, train_cgn_mnist
from skdcgn.cgn.teachers import OWN_TEACHER, OWN_TEACHER_NAME, mnist_teacher
from skdcgn.classifiers.invariant import evaluate
from skdcgn.counterfactuals.datasets import CounterfactualConfig, draw
from skdcgn.errors import InputError
from skdcgn.measure.features import load_feature_network
from skdcgn.mechanisms import Mechanism
from skdcgn.recipes.students import load_student
from skdcgn.runs import store as run_store
from skdcgn.runs.lifecycle import carry_out


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data folder, no cache, no network."""
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")


def test_package_brings_a_double_colored_teacher_along(offline: None) -> None:
    with pytest.warns(UserWarning, match="from the package"):
        teacher = mnist_teacher("double_colored")
    assert teacher.name == OWN_TEACHER_NAME
    assert not teacher.stand_in  # it is no miniature, and learned from the real MNIST
    data = draw(teacher, CounterfactualConfig(1000, per_mask=1))
    # A classifier that learned shapes from real digits reads most of its counterfactuals; texture and background share
    # a color in 10 % of them, where there is nothing to be read.
    assert evaluate(load_feature_network(), data.pixels, data.shape).accuracy > 0.75
    with pytest.raises(InputError, match="wildlife"):
        mnist_teacher("wildlife")


def test_package_says_how_its_teacher_was_made() -> None:
    assert OWN_TEACHER.stat().st_size < 3e6
    with safe_open(OWN_TEACHER, "pt") as file:
        metadata = file.metadata()
    # The file is older than the command: what is now `train-cgn` was a module.
    assert metadata["command"].startswith("python -m skdcgn.cgn_training --dataset double_colored")
    assert json.loads(metadata["training"])["seed"] == 0
    scores = json.loads(metadata["scores"])
    assert scores["valid_accuracy"] > 0.7
    assert scores["stroke_iou"] > 0.9 * scores["stroke_iou_of_real"]


def test_wrong_data_folder_is_no_reason_to_take_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere"):
        mnist_teacher("double_colored")


def test_training_a_teacher_measures_it(store: run_store.Store, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(train_cgn_mnist.DEFAULTS["smoke"], dataset="digits")
    (run_id,) = carry_out(train_cgn_mnist.plan(config))["run_id"]
    final = store.record(run_id).final
    assert {"valid_accuracy", "test_accuracy", "stroke_iou", "parameters"} <= set(final)
    assert not any(key.startswith("authors") for key in final)  # there are none for the digits
    sheets = store.load_tensors(run_id, "samples")
    assert sheets["ours_mask"].shape == (20, 1, 32, 32)
    with store.artifact(run_id, "cgn.safetensors") as path:
        assert mnist_teacher("double_colored", path).num_classes == 10
    assert carry_out(train_cgn_mnist.plan(config))["run_id"].tolist() == [run_id]
    assert "skipped" in capsys.readouterr().out


@pytest.mark.data
def test_a_teacher_is_set_beside_the_authors(data_dir: Path, store: run_store.Store) -> None:
    smoke = train_cgn_mnist.DEFAULTS["smoke"]
    config = replace(smoke, training=replace(smoke.training, steps=2), counterfactuals=64)
    (run_id,) = carry_out(train_cgn_mnist.plan(config))["run_id"]
    final = store.record(run_id).final
    real = final["stroke_iou_of_real"]
    assert final["authors_stroke_iou_of_real"] == real
    assert final["stroke_iou"] < 0.5 * real < final["authors_stroke_iou"]
    assert "authors_counterfactual" in store.load_tensors(run_id, "samples")


def test_baseline_keeps_three_generators(store: run_store.Store) -> None:
    config = replace(baseline_mnist.DEFAULTS["smoke"], dataset="digits", seeds=(0, 1), counterfactuals=64)
    table = carry_out(baseline_mnist.plan(config))
    assert list(table.index) == [("digits", 0), ("digits", 1)]
    for run_id in table["run_id"]:
        assert store.record(run_id).tags["source"] == "baseline"
        for mechanism in Mechanism:
            student = load_student(store, run_id, mechanism.value)
            images = student(torch.zeros(10, 32), torch.arange(10))
            assert images.shape == (10, mechanism.channels, 32, 32)
    assert not torch.equal(*(load_student(store, run_id, "shape").fc.weight for run_id in table["run_id"]))


def test_analysis_sets_ours_beside_the_baseline_and_names_what_is_missing(store: run_store.Store) -> None:
    empty = train_cgn_mnist_figures.table(View(store, dataset="digits"))
    assert empty.commands == [
        "python experiments/train_cgn_mnist.py --dataset digits",
        "python experiments/baseline_mnist.py --dataset digits",
    ]
    assert all(is_gap(figure) for figure in train_cgn_mnist_figures.figure(View(store, dataset="digits")).values())
    config = replace(baseline_mnist.DEFAULTS["smoke"], dataset="digits", seeds=(0, 1), counterfactuals=64)
    measured = carry_out(baseline_mnist.plan(replace(config, training=replace(config.training, steps=2))))
    table = train_cgn_mnist_figures.table(View(store, dataset="digits"))
    assert table.commands == empty.commands[:1]
    cells = table.cells.set_index(["metric", "cgn"])
    assert cells.loc[("final/stroke_iou", "CGN with TinyGANs (baseline)"), "n"] == 2
    mean = cells.loc[("final/test_accuracy", "CGN with TinyGANs (baseline)"), "mean"]
    assert mean == pytest.approx(measured["test_accuracy"].mean())
    drawn = train_cgn_mnist_figures.figure(View(store, dataset="digits"))["our_baseline"]
    assert cited(drawn) == [measured["run_id"].iloc[0]]
    assert "smoke" in drawn.texts[0].get_text()
