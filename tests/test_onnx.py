"""Students as one ONNX graph: what it computes, what it needs, and what the command refuses."""

import importlib.util
from pathlib import Path

import pytest
import torch
from test_commands import call

from skdcgn.configs.slim import SLIM_MNIST
from skdcgn.configs.tinygan import NATIVE_MNIST
from skdcgn.counterfactuals import onnx
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism, render_composed
from skdcgn.randomness import seeded, stream
from skdcgn.tinygan.networks import build_student

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx: pip install -e '.[onnx]'"
)


def trio() -> SKDCGN:
    with seeded(0, "students"):
        architectures = {
            Mechanism.SHAPE: SLIM_MNIST,
            Mechanism.TEXTURE: NATIVE_MNIST,
            Mechanism.BACKGROUND: SLIM_MNIST,
        }
        return SKDCGN({each: build_student(config.for_mechanism(each)) for each, config in architectures.items()})


def test_the_network_is_eq_1_of_the_students() -> None:
    source = trio()
    inputs = onnx.draw_inputs(source, 6, stream(0, "inputs"))
    with torch.no_grad():
        mask, texture, background, image = onnx.Composition(source)(*inputs)
    expected = render_composed(
        source, dict.fromkeys(Mechanism, inputs[0]), dict(zip(Mechanism, inputs[1:], strict=True))
    )
    assert torch.equal(mask, expected.mask)
    assert torch.equal(texture, expected.texture)
    assert torch.equal(background, expected.background)
    assert torch.equal(image, expected.images)


@needs_onnx
def test_the_graph_computes_what_pytorch_does_whatever_the_batch(tmp_path: Path) -> None:
    source, path = trio(), tmp_path / "students.onnx"
    onnx.export(source, path)
    graph = onnx.load(path)
    assert [onnx.difference(source, graph, batch) < onnx.TOLERANCE for batch in (1, 2, 100)] == [True] * 3
    assert (
        onnx.difference(SKDCGN({each: build_student(SLIM_MNIST.for_mechanism(each)) for each in Mechanism}), graph)
        > 0.01
    )
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnxruntime and onnxscript: pip install -e '\.\[onnx\]'"):
        onnx.export(trio(), tmp_path / "students.onnx")
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_no_set_of_students_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "students.onnx"
    assert call(monkeypatch, "onnx", "--source", "cgn:double_colored", "--out", str(path)) == 2
    assert "cgn:double_colored is no set of three students" in capsys.readouterr().err
    assert not path.exists()
