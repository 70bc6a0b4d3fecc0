"""How the code is laid out: small modules, small packages, and a short way from a study's config to its loss."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports
from test_experiments import SHARED, STEMS

from skdcgn.runs.identity import Symbol, _module, _uses
from skdcgn.runs.provenance import PROJECT

ROOMS = ("skdcgn", "analysis", "experiments")
MODULES = sorted(path for room in ROOMS for path in (PROJECT / room).rglob("*.py"))


def _named(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def test_the_code_is_found() -> None:
    assert {path.relative_to(PROJECT).parts[0] for path in MODULES} == set(ROOMS)
    assert len(STEMS) >= 14
    assert not set(STEMS) & set(SHARED)


@pytest.mark.parametrize("path", MODULES, ids=_named)
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_packages_have_nine_modules_at_most() -> None:
    sizes = {
        _named(package.parent): len({*package.parent.glob("*.py")} - {package, package.parent / "__main__.py"})
        for package in (PROJECT / "skdcgn").rglob("__init__.py")
    }
    assert {"skdcgn", "skdcgn/runs", "skdcgn/recipes"} <= sizes.keys()
    assert {name: size for name, size in sizes.items() if size > 9} == {}


# --- what the package knows of the scripts


def _strings(path: Path) -> Iterator[str]:
    """Yield the strings of a module but its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    words = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in words:
            yield node.value


def test_strings_leave_docstrings_out(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""Of mnist_kd."""\nX = f"see {1} mnist_kd"\n"""mnist_kd too."""\n')
    assert list(_strings(path)) == ["see ", " mnist_kd"]


@pytest.mark.parametrize("path", [path for path in MODULES if _named(path).startswith("skdcgn/")], ids=_named)
def test_the_package_names_no_script(path: Path) -> None:
    assert [text for text in _strings(path) if any(stem in text for stem in STEMS)] == []


# --- what identities rely on


@pytest.mark.parametrize("path", MODULES, ids=_named)
def test_imports_are_such_as_identities_follow(path: Path) -> None:
    """`import skdcgn.x`, relative and star imports would hide from an identity what a run uses."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.partition(".")[0] in ROOMS]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert [alias.name for alias in node.names] != ["*"]


def test_imports_go_down_only() -> None:
    assert lint_imports(str(PROJECT / "pyproject.toml"), no_cache=True, no_logo=True) == 0


# --- the way of a config

CALLS = (
    # the plan: from the command line's config to that of one student
    ("experiments.mnist_kd.DEFAULTS", "experiments.presets.STUDENTS"),
    ("experiments.mnist_kd.plan", "experiments.cases.distillation"),
    ("experiments.cases.distillation", "experiments.cases.student_case"),
    ("experiments.cases.student_case", "skdcgn.recipes.students.make_student"),
    # the run: `carry_out` calls the case's `make`
    ("skdcgn.commands.experiments.experiment.main", "skdcgn.runs.lifecycle.carry_out"),
    ("skdcgn.recipes.students.make_student", "skdcgn.recipes.students.distil"),
    ("skdcgn.recipes.students.distil", "skdcgn.runs.loop.train"),
    ("skdcgn.recipes.students.distil", "skdcgn.tinygan.distillation.Distiller"),
    # the loss: `train` calls the trainer's `fit`, and that the distiller's `training_step`
    ("skdcgn.tinygan.distillation.Distiller", "skdcgn.training.Trainer"),
    ("skdcgn.tinygan.distillation.Distiller", "skdcgn.tinygan.losses.generator_terms"),
    ("skdcgn.tinygan.distillation.Distiller", "skdcgn.tinygan.losses.discriminator_terms"),
)


def _symbol(dotted: str) -> Symbol:
    return Symbol(*dotted.rsplit(".", 1))


@pytest.mark.parametrize(("caller", "called"), CALLS)
def test_a_config_goes_this_way(caller: str, called: str) -> None:
    assert _symbol(called).name in _module(_symbol(called).module).symbols
    assert _symbol(called) in _uses(_symbol(caller))


def test_a_config_reaches_the_loss_through_ten_files_at_most() -> None:
    files = {_symbol(name).module for call in CALLS for name in call}
    assert {"experiments.mnist_kd", "skdcgn.tinygan.losses"} <= files
    assert len(files) <= 10
