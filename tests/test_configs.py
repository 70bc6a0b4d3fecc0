"""Configs: a command line is read at once, and a value either works or is refused with one sentence."""

import dataclasses
import importlib
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_experiments import STEMS

from skdcgn import cli
from skdcgn.__main__ import COMMANDS
from skdcgn.cli import override
from skdcgn.configs.fields import Checked, Evaluations, PositiveInt, Seeds, Some, check
from skdcgn.configs.tinygan import FeatureDistance, KLOn
from skdcgn.errors import InputError
from skdcgn.recipes.sweep import conduct
from skdcgn.runs.identity import config_fields, derive
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.plan import Plan
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.search.sweep import apply
from skdcgn.runs.store import Store
from skdcgn.tinygan.losses import FEATURE_DISTANCES, KL_DIVERGENCES

SCRIPTS = {stem: importlib.import_module(f"experiments.{stem}") for stem in STEMS}
HEAVY = ("torch", "mlflow", "pandas", "optuna", "matplotlib")

# --- a command line is read at once ---------------------------------------------------------------------------------

PROGRAM = f"""
import contextlib, importlib, io, sys
import skdcgn
import tyro
from skdcgn import __main__ as package, cli, commands
from skdcgn.commands.experiments import experiment

def loaded(name):
    found = [heavy for heavy in {HEAVY} if heavy in sys.modules]
    if found:
        sys.exit(f"{{name}} imports {{', '.join(found)}}")

loaded("the command line")
for stem in {STEMS}:
    script = importlib.import_module(f"experiments.{{stem}}")
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        cli.parse(script.DEFAULTS, script.__doc__, ["--help"])
    assert "--profile" in shown.getvalue()
    loaded(stem)
for name in {[name.replace("-", "_") for name in COMMANDS]}:
    command = importlib.import_module(f"skdcgn.commands.{{name}}")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        tyro.cli(command.Config, args=["--help"])
    loaded(name)
"""


def test_help_needs_neither_pytorch_nor_the_store() -> None:
    """These take seconds to import. What shows --help, and all of a command line but the run, does without."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_names_of_losses_are_those_that_there_are() -> None:
    assert get_args(FeatureDistance) == tuple(FEATURE_DISTANCES)
    assert get_args(KLOn) == tuple(KL_DIVERGENCES)


# --- the check ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner(Checked):
    steps: PositiveInt = 1
    rate: Annotated[float, "a rate"] = 0.5


@dataclass(frozen=True)
class Outer(Checked):
    inner: Inner = dataclasses.field(default_factory=Inner)
    seeds: Seeds = (0,)
    kinds: Some[Literal["a", "b"]] = ("a",)
    evaluations: Evaluations = 5
    limit: PositiveInt | None = None
    flag: bool = False
    path: Path | None = None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"inner.steps": 0}, "steps is 0: give a whole number above 0, up to 10^9."),
        ({"inner.steps": True}, "steps is True: give a whole number above 0, up to 10^9."),
        ({"seeds": (0, 0)}, "seeds is (0, 0): give one or more whole numbers of 0 or more, below 2^32, each once."),
        ({"seeds": ()}, "seeds is (): give one or more whole numbers of 0 or more, below 2^32, each once."),
        ({"kinds": ()}, "kinds is (): give one or more, each once."),
        ({"kinds": ("c",)}, "kinds is ('c',): give 'a' or 'b'."),
        ({"limit": 0}, "limit is 0: give a whole number above 0, up to 10^9."),
        ({"flag": 1}, "flag is 1: give a valid boolean."),
        ({"path": "x"}, "path is 'x': give an instance of Path."),
        ({"inner.steps": "many"}, "steps is 'many': give a whole number above 0, up to 10^9."),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        apply(Outer(), change)
    assert str(error.value) == sentence


def test_what_is_right_stays_as_it_is() -> None:
    config = Outer(Inner(3, 1), (0, 2**32 - 1), ("b", "a"), (0.5, 1.0), 7, True, Path("x"))
    assert config_fields(config) == {
        "inner.steps": "3",
        "inner.rate": "1",
        "seeds": "(0, 4294967295)",
        "kinds": "('b', 'a')",
        "evaluations": "(0.5, 1.0)",
        "limit": "7",
        "flag": "True",
    }
    assert derive(Outer, config) == replace(config)


@pytest.mark.parametrize("value", [0, -1, (), (0.0,), (1.5,), (0.5, 0.5), (math.nan,), 0.5])
def test_evaluations_are_a_number_or_fractions(value: object) -> None:
    with pytest.raises(InputError, match=r"^evaluations is .*: give a whole number from 1 to 1000, or fractions"):
        check("evaluations", value, Evaluations)


def test_a_config_file_is_checked_too() -> None:
    assert override(Outer(), {"seeds": [1, 2], "inner": {"steps": 4}}, "best.yaml").seeds == (1, 2)
    with pytest.raises(InputError, match=r"^best\.yaml: inner\.steps is -4: give a whole number"):
        override(Outer(), {"inner": {"steps": -4}}, "best.yaml")


def test_too_little_memory_is_told_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    def allocate() -> None:
        torch.empty(10**15, dtype=torch.uint8)

    with pytest.raises(SystemExit) as ended:
        cli.entry(allocate)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not enough memory" in line


def test_other_errors_keep_their_traceback() -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.entry(fail)


# --- every field of every script ------------------------------------------------------------------------------------


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the type of each field that is no config."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name]


LEAVES = [(stem, *leaf) for stem, script in SCRIPTS.items() for leaf in _leaves(script.DEFAULTS["smoke"])]


def _is_bounded(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return any(not isinstance(each, str) for each in hint.__metadata__) or _is_bounded(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return True
    return hint not in (int, float) and all(map(_is_bounded, get_args(hint)))


def test_every_number_of_every_config_has_bounds() -> None:
    assert len(LEAVES) > 300
    assert not _is_bounded(tuple[int, ...] | None)
    assert {f"{stem}: {name}" for stem, name, hint in LEAVES if not _is_bounded(hint)} == set()


NUMBERS = [-(2**64), -1, 0, 1, 2, 3, 10**9, 10**9 + 1, 2**64, -1.0, -0.0, 0.0, 1e-300, 0.5, 1.0, 1.5, 1e300]
NUMBERS += [math.nan, math.inf, -math.inf]
ATOMS = st.sampled_from([*NUMBERS, None, True, "", "x", "gpu", "cpu", "all", "none", Path("x")])
VALUES = ATOMS | st.integers() | st.floats() | st.text(max_size=3) | st.lists(ATOMS, max_size=5).map(tuple)


@given(leaf=st.sampled_from(LEAVES), value=VALUES)
@settings(max_examples=500, deadline=None)
def test_a_value_is_taken_or_refused_with_one_sentence(leaf: tuple[str, str, Any], value: object) -> None:
    stem, name, _ = leaf
    config = SCRIPTS[stem].DEFAULTS["smoke"]
    try:
        changed = apply(config, {name: value})
    except InputError as error:
        sentence = str(error)
        assert len(sentence.splitlines()) == 1
        assert sentence.endswith(".")
        assert name.rpartition(".")[2] in sentence
    else:
        assert config_fields(changed).keys() >= config_fields(config).keys() - {name}


@pytest.mark.parametrize("stem", STEMS)
def test_no_field_takes_what_is_no_value_of_its_type(stem: str) -> None:
    """Nothing is a value of every type: an object is of none."""
    config = SCRIPTS[stem].DEFAULTS["smoke"]
    for name, _ in _leaves(config):
        for wrong in (object(), b"", math.nan, -math.inf, -1, -1.0, (), (-1,), (math.nan,)):
            if wrong == () and name in ("strengths", "strengths_when", "widths"):
                continue  # none of them are fine
            with pytest.raises(InputError):
                apply(config, {name: wrong})


# --- through the command line ---------------------------------------------------------------------------------------

BAD = [
    ("mnist_kd", ("--distill.steps", "0"), "distill: steps is 0: give a whole number above 0"),
    ("mnist_kd", ("--distill.steps", "-5"), "steps is -5"),
    ("mnist_kd", ("--distill.batch-size", "0"), "batch_size is 0"),
    ("mnist_kd", ("--distill.batch-size", "1000"), "give no more than the 40 records of the teacher set"),
    ("mnist_kd", ("--distill.learning-rate", "-1"), "learning_rate is -1.0: give a number above 0"),
    ("mnist_kd", ("--distill.ema", "1"), "ema is 1.0"),
    ("mnist_kd", ("--distill.per-class", "0", "--distill.published-code"), "per_class is 0"),
    ("mnist_kd", ("--seeds", "-1"), "seeds is (-1,)"),
    ("mnist_kd", ("--seeds", "0", "0"), "seeds is (0, 0)"),
    ("mnist_kd", ("--seeds",), "seeds is ()"),
    ("mnist_kd", ("--evaluations", "0"), "evaluations is 0"),
    ("mnist_kd", ("--loss.kl", "nan"), "kl is nan"),
    ("mnist_kd", ("--loss.kl", "1e999"), "kl is inf"),
    ("mnist_kd", ("--loss.alphas", "1"), "give one for each of the discriminator's 3 layers"),
    ("mnist_kd", ("--loss.real", "0.2"), "students learn from no real images"),
    ("mnist_kd", ("--student.num-classes", "5"), "num_classes is 5: give 10"),
    ("mnist_kd", ("--student.noise-dim", "5"), "noise_dim is 5: give 32"),
    ("mnist_kd", ("--student.channels", "1"), "channels is 1: give 3"),
    ("mnist_kd", ("--runtime.device", "gpu"), "device is 'gpu': give auto, cpu, cuda, cuda:1 or the like"),
    ("mnist_kd", ("--runtime.checkpoint-every", "0"), "checkpoint_every is 0"),
    ("mnist_kd", ("--runtime.log-every", "0"), "log_every is 0"),
    ("mnist_kd", ("--runtime.threads", "-1"), "threads is -1"),
    ("kl_convergence", ("--target-iou", "2"), "target_iou is 2.0: give a number from 0 to 1"),
    ("sweep_kl", ("--search.trials", "0"), "trials is 0"),
    ("sweep_kl", ("--search.study", "it's"), "give a name without quotes"),
    ("sweep_kl", ("--confirm-seeds", "0", "1"), "give seeds that no trial has, not 0"),
    ("table1_shape_im", ("--classifier.batch-size", "0"), "batch_size is 0"),
    ("table1_shape_im", ("--classifier.batch-size", "1000000"), "give no more than images, which is 60"),
    ("table1_shape_im", ("--images", "3"), "images is 3: give at least 4"),
    ("table1_shape_im", ("--strengths", "2"), "strengths is (2.0,)"),
    ("ood_robustness", ("--datasets", "digits", "digits"), "datasets is ('digits', 'digits')"),
    ("ood_robustness", ("--per-mask", "1001"), "per_mask is 1001"),
    ("baseline_mnist", ("--student.noise-dim", "5"), "noise_dim is 5: give 32"),
    ("train_cgn_mnist", ("--training.batch-size", "1"), "batch_size is 1"),
    ("imagenet_ood", ("--training.batch-size", "81"), "give no more than the 80 training images"),
    ("imagenet_kd", ("--truncation", "0"), "truncation is 0.0"),
    ("baseline_cgn_tinygan", ("--cgn.training.accumulate", "3"), "give a multiple of accumulate"),
    ("fit_miniature", ("--fit.batch-size", "9"), "batch_size is 9: give a multiple of 8"),
]


@pytest.mark.parametrize(("stem", "options", "words"), BAD)
def test_a_bad_option_ends_with_exit_code_2_before_anything_runs(
    refusal: Callable[..., str], stem: str, options: tuple[str, ...], words: str
) -> None:
    script = SCRIPTS[stem]
    digits = {"dataset": ("--dataset", "digits"), "datasets": ("--datasets", "digits")}
    own = [flags for field, flags in digits.items() if hasattr(script.DEFAULTS["smoke"], field)]
    own = () if stem == "imagenet_kd" or options[0] == "--datasets" else own[0] if own else ()
    message = refusal(script, "--profile", "smoke", *own, *options)
    assert words in " ".join(message.replace("│", " ").split())


# --- what is accepted runs ------------------------------------------------------------------------------------------

EDGES = [
    (
        "mnist_kd",
        {
            "mechanism": "texture",
            "seeds": (2**32 - 1,),
            "distill": {
                "steps": 1,
                "batch_size": 2,
                "per_class": 0,
                "warmup": 0,
                "ema": 0.999,
                "discriminator_width": 1,
            },
            "student": {"resolution": 64, "blocks": 4, "width": 1, "label_input": "none", "class_dim": 1},
            "loss": {"temperature": 1e-3},
            "heldout_per_class": 1,
            "evaluations": (1e-9, 1.0),
            "runtime": {"log_every": 10**9, "checkpoint_every": 1},
        },
    ),
    (
        "mnist_kd",
        {
            "mechanism": "shape",
            "distill": {"steps": 2, "batch_size": 10, "per_class": 1, "betas": (0.0, 0.0), "precision": "fp32"},
            "student": {"resolution": 8, "label_input": "one_hot", "class_rows": 11, "mask_channels": 3},
            "loss": {"feature": 0.0, "lambda_1": 0.0, "lambda_2": 0.0, "kl_on": "image"},
            "heldout_per_class": 1,
            "evaluations": 20,
        },
    ),
    (
        "noise_pairing",
        {"mechanism": "texture", "distill": {"steps": 1, "per_class": 1, "batch_size": 2}, "heldout_per_class": 1},
    ),
    (
        "train_cgn_mnist",
        {
            "training": {
                **{"steps": 1, "batch_size": 2, "texture_every": 10**9, "texture_warmup": 0, "ema": 0.0},
                **{"decay_from": 0.0, "adversarial": 0.0, "binary": 0.0, "frame": 0.0, "color": 0.0},
                **{"perceptual": "random", "intervention": "transparency", "intervention_strength": 0.0},
            },
            "classifier": {"batch_size": 1, "gamma": 1.0},
            "counterfactuals": 1,
            "evaluations": 1,
        },
    ),
    (
        "baseline_mnist",
        {
            "training": {"steps": 1, "batch_size": 2},
            "student": {"blocks": 5, "width": 1, "label_dim": 1},
            "classifier": {"batch_size": 1},
            "counterfactuals": 1,
        },
    ),
    (
        "ood_robustness",
        {
            "sources": ("original", "gan", "cgn"),
            "images": 1,
            "per_mask": 100,
            "classifier": {"batch_size": 1},
            "gan": {"steps": 1, "batch_size": 2, "ema": 0.0, "discriminator_width": 1, "generator": {"blocks": 5}},
        },
    ),
    (
        "table1_shape_im",
        {
            **{"images": 4, "per_mask": 4, "two_way_images": 1, "classifier": {"batch_size": 1}},
            **{"interventions": ("rotation_transparency",), "when": ("both",), "init": ("scratch",)},
            **{"training": {"steps": 1}, "strengths": (1.0, 0.1), "labels": ("unpermuted",)},
        },
    ),
    (
        "sweep_lambdas",
        {
            **{"search": {"trials": 1, "sampler": "random"}, "confirm_seeds": (2**32 - 1,), "seed": 2**32 - 2},
            **{"widths": (1,), "n_critic": True, "decay": True, "evaluations": 1, "heldout_per_class": 1},
        },
    ),
    (
        "baseline_cgn_tinygan",
        {
            "tinygan": {"distill": {"steps": 1}, "heldout": 2, "epochs": 100},
            "cgn": {
                "training": {
                    **{"steps": 1, "accumulate": 1, "batch_size": 1, "truncation": 0.01, "batch_statistics": True},
                    "loss": {"patch_grid": 1, "patch_positions": 1},
                },
                **{"heldout": 1, "snapshots": 1},
            },
            **{"counterfactuals": 2, "sources": ("baseline", "cgn")},
        },
    ),
    (
        "imagenet_ood",
        {
            "training": {"batch_size": 2, "epochs": 1, "counterfactuals": 1, "resolution": 1, "random_crops": True},
            **{"images": 1, "sources": ("original", "cgn")},
        },
    ),
]


@pytest.mark.parametrize(
    ("stem", "values"),
    [pytest.param(*edge, id=f"{edge[0]}-{i}", marks=[pytest.mark.slow] * (i > 1)) for i, edge in enumerate(EDGES)],
)
def test_values_at_the_edge_of_what_is_accepted_work(digits: Store, stem: str, values: dict[str, Any]) -> None:
    config = SCRIPTS[stem].DEFAULTS["smoke"]
    for name, chosen in (("datasets", ("digits",)), ("dataset", "digits")):
        if hasattr(config, name):
            values = {**values, name: chosen}
    planned = SCRIPTS[stem].plan(override(config, values, "a test"))
    results = carry_out(planned) if isinstance(planned, Plan) else conduct(planned)
    assert len(results) > 0
    assert all(digits.record(run_id).status == "FINISHED" for run_id in results["run_id"])
