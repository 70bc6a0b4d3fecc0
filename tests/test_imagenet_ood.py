"""The invariant ensemble's experiment at smoke scale, and its table and figure."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis import baseline_cgn_tinygan as baseline_cgn_tinygan_figures
from analysis import imagenet_ood as analysis
from analysis.frame import style
from analysis.frame.view import View
from experiments import baseline_cgn_tinygan, imagenet_kd, imagenet_ood
from skdcgn.cgn import miniature
from skdcgn.cgn import teachers as cgn_teachers
from skdcgn.cgn.imagenet import MINIATURE, ImageNetCGN
from skdcgn.classifiers.networks import HEADS
from skdcgn.errors import InputError
from skdcgn.randomness import stream
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.store import Store

SMOKE = imagenet_ood.DEFAULTS["smoke"]


@pytest.fixture(autouse=True)
def random_miniature(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged miniature with random weights, and no data: nothing here looks at what pictures show."""
    path = tmp_path_factory.getbasetemp() / "random_miniature.safetensors"
    if not path.exists():
        miniature.save_miniature(path, ImageNetCGN(MINIATURE, stream(0, "miniature")), {})
    monkeypatch.setattr(cgn_teachers, "MINIATURE_FILE", path)
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(path.parent / "no cache"))
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")


def _check(store: Store, results: pd.DataFrame, sources: tuple[str, ...]) -> None:
    assert results.index.to_list() == [(source, 0) for source in sources]
    for head in HEADS:
        assert results[f"top1_{head}"].between(0, 1).all()
        gap = results[f"in9_mixed_same_{head}"] - results[f"in9_mixed_rand_{head}"]
        assert results[f"bg_gap_{head}"].to_list() == pytest.approx(gap.to_list())
        assert results[f"cue_accuracy_{head}"].between(0, 1).all()
    runs = store.runs("imagenet_ood")
    assert {run.tags["source"] for run in runs} == set(sources)
    for run in runs:
        assert run.status == "FINISHED"
        assert (run.tags["kind"], run.tags["stand_in"], run.tags["dataset"]) == ("ensemble", "true", "miniature")
        assert "composites" in run.tags["images"]
        assert run.tags["overrides"] == "none"
        assert ("loss/texture" in run.metrics) == (run.tags["source"] != "original")
        with store.artifact(run.run_id, "ensemble.safetensors") as path:
            assert path.stat().st_size > 1e5


def test_experiment_table_and_figure(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert style.is_gap(analysis.figure(View(store)))
    empty = analysis.table(View(store))
    assert empty.empty
    assert "python experiments/imagenet_ood.py --sources cgn" in empty.commands

    config = replace(SMOKE, sources=("original", "cgn"))
    _check(store, carry_out(imagenet_ood.plan(config)), config.sources)
    capsys.readouterr()
    carry_out(imagenet_ood.plan(config))
    assert capsys.readouterr().out.count("finished before") == 2
    assert len(store.runs("imagenet_ood")) == 2

    table = analysis.table(View(store))
    assert "stand-in: a miniature" in table.title
    assert "smoke test" in table.title
    text = table.text
    assert text.loc[("IN-9 mixed-rand ↑", "all heads"), "ResNet-50, published"] == "78.9"
    assert text.loc[("BG gap ↓", "shape head"), "+ CGN"].endswith("n=1")
    assert text.loc[("BG gap ↓", "shape head"), "+ SKDCGN"].startswith("no finished run")
    assert len(table.commands) == 2
    table.save("imagenet_ood", tmp_path)
    figure = analysis.figure(View(store))
    assert len(style.cited(figure)) == 2
    assert style.save(figure, "imagenet_ood", tmp_path).stat().st_size > 10_000
    sizes = analysis.fidelity(View(store))
    assert sizes.empty
    assert sizes.commands


@pytest.mark.slow
def test_every_source(store: Store) -> None:
    _check(store, carry_out(imagenet_ood.plan(SMOKE)), SMOKE.sources)
    carry_out(baseline_cgn_tinygan.plan(baseline_cgn_tinygan.DEFAULTS["smoke"]))
    sizes = analysis.fidelity(View(store))
    text = sizes.text
    assert "stand-in" in sizes.title
    assert text.loc[("counterfactuals", "Inception score ↑"), baseline_cgn_tinygan_figures.SOURCES["skdcgn"]].endswith(
        "n=1"
    )
    assert text.loc[("texture", "parameters"), baseline_cgn_tinygan_figures.SOURCES["cgn"]] != "not measured"
    assert text.loc[("shape", "mask IoU with the CGN's ↑"), baseline_cgn_tinygan_figures.SOURCES["cgn"]] == "reference"
    assert not sizes.commands


def test_generators_are_the_runs_of_the_other_scripts() -> None:
    (students, baseline) = imagenet_ood.plan(replace(SMOKE, sources=("skdcgn", "baseline"))).cases
    theirs = imagenet_kd.plan(imagenet_kd.DEFAULTS["smoke"]).cases[-1]
    assert students.needs["source"].identity == theirs.identity
    for stage in baseline_cgn_tinygan.plan(replace(baseline_cgn_tinygan.DEFAULTS["smoke"], stage="cgn")).cases:
        cgn = baseline.needs["source"]
        assert stage.identity in (cgn.identity, cgn.needs["tinygan"].identity)
        assert stage.tags == (cgn if stage.name == "cgn" else cgn.needs["tinygan"]).tags


def test_force_runs_the_ensembles_again_but_not_what_they_need() -> None:
    forced = imagenet_ood.plan(replace(SMOKE, runtime=replace(SMOKE.runtime, force=True)))
    assert {case.experiment for case in forced.everything() if case.config.runtime.force} == {"imagenet_ood"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: {"in9": folder}, "--imagenet, --in9 and --cue-conflict go together"),
        (lambda folder: {"teacher": folder / "cgn.pth"}, "leave --teacher out"),
        (lambda folder: {"training": replace(SMOKE.training, pretrained=True)}, "--backbone is missing"),
        (lambda folder: {"backbone": folder / "no.pth"}, r"no file .*no\.pth"),
        (lambda folder: {"imagenet": folder, "in9": folder, "cue_conflict": folder}, "There is no folder"),
    ],
)
def test_bad_input_is_one_sentence(store: Store, tmp_path: Path, change: Callable[[Path], dict], words: str) -> None:
    with pytest.raises(InputError, match=words):
        imagenet_ood.plan(replace(SMOKE, sources=("original",), **change(tmp_path)))
    assert not store.runs("imagenet_ood")


def test_full_needs_the_real_weights(store: Store) -> None:
    with pytest.raises(InputError, match="python -m skdcgn weights"):
        imagenet_ood.plan(imagenet_ood.DEFAULTS["full"])
