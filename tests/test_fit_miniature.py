"""The experiment that fits the miniature, part by part, as runs."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments import fit_miniature
from skdcgn.cgn import miniature
from skdcgn.cgn.miniature import FITTED, FitConfig, measure_statistics
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime


@pytest.mark.data
def test_the_script_fits_every_part_once(
    store: run_store.Store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_miniature, "_PER_CLASS", 2)
    monkeypatch.setattr(miniature, "measure_statistics", partial(measure_statistics, images=10))
    out = tmp_path / "out.safetensors"
    fit = FitConfig(2, 2, 2, 2, batch_size=8)
    config = fit_miniature.Config("smoke", fit, out=out, runtime=Runtime(threads=1))
    measured = fit_miniature.main(config)
    assert set(measured) == {"biggan_GT_l1", "f_shape_l1", "f_text_l1", "f_bg_l1", "shape_iou", "saliency_iou"}
    runs = store.search("fit_miniature")
    assert {run.data.tags["part"] for run in runs} == {"all", *FITTED}
    assert all(run.info.status == "FINISHED" for run in runs)
    written = load_file(out)
    out.unlink()
    assert fit_miniature.main(config) == measured
    assert all(torch.equal(tensor, written[key]) for key, tensor in load_file(out).items())
    assert len(store.search("fit_miniature")) == len(runs)
