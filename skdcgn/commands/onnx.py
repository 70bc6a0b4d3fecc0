"""Write three students and their composition as one ONNX graph, and check it against PyTorch.

    python -m skdcgn onnx --source runs:/<id of a run> --out students.onnx
    python -m skdcgn onnx --source runs:/<id of a run> --out students.onnx --teacher cgn:double_colored

The graph takes noise (B, 32) and three labels (B,), and returns mask, texture_image, background_image and image. It
needs no PyTorch to run: onnxruntime does, in many languages. Needs the extra: pip install -e '.[onnx]'.
"""

from dataclasses import dataclass
from pathlib import Path

from skdcgn.configs.fields import Checked, PositiveInt


@dataclass(frozen=True)
class Config(Checked):
    """Write an ONNX graph."""

    source: str
    """Three students put together: runs:/ID of a run that did so."""
    out: Path
    """File to write."""
    teacher: str | None = None
    """A CGN to time beside them, such as cgn:double_colored."""
    batch: PositiveInt = 64
    """Images at a time where speed is measured."""


def main(config: Config) -> None:
    """Write the graph, check it, and print size and speed.

    Raises:
        InputError: the source is no set of students, or the graph does not compute what they do.
    """
    import torch

    from skdcgn.counterfactuals import onnx
    from skdcgn.counterfactuals.students import SKDCGN
    from skdcgn.errors import InputError
    from skdcgn.measure.cost import latency_ms
    from skdcgn.mechanisms import Mechanism, render_composed
    from skdcgn.recipes.sources import load_source
    from skdcgn.runs.store import open_store

    source = load_source(config.source, open_store() if config.source.startswith("runs:/") else None)
    if not isinstance(source, SKDCGN):
        raise InputError(f"{config.source} is no set of three students: give runs:/ID of a run that kept one.")
    torch.set_num_threads(1)
    onnx.export(source, config.out)
    graph = onnx.load(config.out)
    if (difference := onnx.difference(source, graph)) > onnx.TOLERANCE:
        config.out.unlink()
        raise InputError(f"the graph's outputs differ from PyTorch's by {difference:.1e}: it was not kept.")
    print(f"{config.out}: {config.out.stat().st_size:,} bytes, at most {difference:.1e} from PyTorch's outputs")

    inputs = onnx.draw_inputs(source, config.batch, torch.Generator().manual_seed(2))
    noise, labels = dict.fromkeys(Mechanism, inputs[0]), dict(zip(Mechanism, inputs[1:], strict=True))
    timed = {
        "onnxruntime": lambda: graph(inputs),
        f"PyTorch, {source.name}": lambda: render_composed(source, noise, labels),
    }
    if config.teacher is not None:
        teacher = load_source(config.teacher)
        timed[f"PyTorch, {teacher.name}"] = lambda: render_composed(teacher, noise, labels)
    for name, run in timed.items():
        milliseconds = latency_ms(run)
        print(f"{name}: {1000 * config.batch / milliseconds:,.0f} images a second ({config.batch} at a time, 1 thread)")
