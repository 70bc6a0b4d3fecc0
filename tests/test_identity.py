"""The identity of a run: what changes it, and what does not."""

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trivial
from hypothesis import given
from hypothesis import strategies as st
from trivial import Config, Loss

from skdcgn.recipes.cgns import make_cgn, make_miniature, make_part
from skdcgn.recipes.imagenet_ood import make_ensemble
from skdcgn.recipes.ood_robustness import make_classifier
from skdcgn.recipes.students import make_student
from skdcgn.recipes.table1_shape_im import make_reading
from skdcgn.runs import identity
from skdcgn.runs.identity import Identity, Symbol, code_of, config_fields, flatten, identify, overrides
from skdcgn.runtime import Runtime

Code = dict[str, str]

# --- the config -----------------------------------------------------------------------------------------------------


def digest(config: Config, **inputs: str) -> str:
    return identify(config, trivial.make, inputs).digest


def test_identity_is_of_what_is_computed_not_of_where() -> None:
    elsewhere = Config(runtime=Runtime(device="cuda", threads=3, force=True), data=Path("somewhere"))
    assert digest(elsewhere) == digest(Config())
    assert digest(Config(weight=2.0)) != digest(Config())
    assert digest(Config(loss=Loss(kl=0.5))) != digest(Config())
    assert digest(Config(), teacher="abc") != digest(Config())
    assert identify(Config(), trivial.other_make).digest != digest(Config())


_numbers = st.floats(-2, 2, width=16).map(lambda number: number + 0.0)  # no -0.0, which equals 0.0
_configs = st.builds(
    Config,
    weight=_numbers,
    sizes=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    name=st.none() | st.text(max_size=3) | st.just("None"),
    loss=st.builds(Loss, kl=_numbers),
    data=st.none() | st.just(Path("data")),
    runtime=st.builds(Runtime, threads=st.integers(0, 2), force=st.booleans()),
)


@given(_configs, _configs)
def test_configs_have_one_identity_where_their_deciding_fields_are_equal(first: Config, second: Config) -> None:
    same = replace(first, data=None, runtime=Runtime()) == replace(second, data=None, runtime=Runtime())
    assert (_of(first) == _of(second)) == same


@given(_configs, st.data())
def test_another_value_of_one_field_is_another_identity(config: Config, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["weight", "sizes", "name", "loss"]))
    other = replace(config, **{name: getattr(data.draw(_configs), name)})
    assert (_of(other) == _of(config)) == (getattr(other, name) == getattr(config, name))
    assert _of(replace(config)) == _of(config)


def _of(config: Config) -> str:
    return Identity(config_fields(config), {}, {}).digest


def test_flatten() -> None:
    assert flatten({"loss": {"kl": 1, "of": {"x": 2}}, "seed": 0}) == {"loss.kl": 1, "loss.of.x": 2, "seed": 0}


def test_overrides_name_what_was_changed() -> None:
    assert overrides(Config(runtime=Runtime(threads=3)), Config(), ()) == "none"
    changed = Config(weight=2.0, sizes=(3,), loss=Loss(kl=0.5))
    assert overrides(changed, Config(), ()) == "weight=2.0, sizes=(3,), loss.kl=0.5"
    assert overrides(changed, Config(), ("sizes", "loss")) == "weight=2.0"
    assert overrides(changed, Config(), ("sizes", "loss.kl")) == "weight=2.0"


def test_differences_name_field_input_and_module() -> None:
    now = Identity(
        {"loss.kl": "0.5", "seed": "0"}, {"teacher": "a", "set": "b"}, {"skdcgn.one": "1", "skdcgn.two": "2"}
    )
    assert now.differences(now.config, now.inputs, now.code) == []
    earlier = {"loss.kl": "1.0", "seed": "0"}, {"teacher": "other", "set": "b"}, {"skdcgn.one": "0", "skdcgn.gone": "3"}
    assert now.differences(*earlier) == [
        "loss.kl was 1.0, is 0.5",
        "another teacher",
        "skdcgn.gone is not used any more",
        "skdcgn.one changed",
        "skdcgn.two changed",
    ]
    assert Identity({}, {}, {}).differences({"seed": "0"}, {}, {}) == ["seed was 0, is not there"]


# --- the code -------------------------------------------------------------------------------------------------------

MODULES = {
    "study": '''
        """A study."""
        import math
        from house import nets
        from house.helpers import scale, step

        RATE = 0.1
        UNUSED = 1

        def make(run, config: dict, needs) -> None:
            """Make the run."""
            from house.lazily import late
            total: float = scale(RATE) + math.pi  # a comment
            return nets.Net().forward(total) + late()

        def unrelated():
            return 1
        ''',
    "helpers": """
        from house.deeper import factor

        CALLS = {"scale": 2}

        def scale(x):
            return factor(x) * CALLS["scale"]

        def step(x):
            return x
        """,
    "deeper": """
        import warnings
        warnings.simplefilter("ignore")

        def factor(x):
            return 3 * x

        def aside(x):
            return x
        """,
    "nets": '''
        from dataclasses import dataclass

        class Base:
            def start(self):
                return 1

        class Net(Base):
            """A network."""
            def forward(self, x):
                return x + self.start()

            def describe(self):
                """Nothing but this."""

        @dataclass
        class Other:
            width: int = 3
        ''',
    "lazily": """
        def late():
            return open("weights.bin")
        """,
}


def _clear() -> None:
    for cached in (code_of, identity._module, identity._uses, identity._text, identity._packaged):
        cached.cache_clear()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Code]]:
    """A throw-away package: writes its modules, some edited as (old, new), and returns the code of its `study.make`."""
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def code(**edits: tuple[str, str]) -> Code:
        for name, text in MODULES.items():
            old, new = edits.get(name, ("", ""))
            assert old in text
            edited = text.replace(old, new) if old else text
            (package / f"{name}.py").write_text(textwrap.dedent(edited).lstrip())
        importlib.invalidate_caches()
        _clear()
        return code_of(frozenset({Symbol("house.study", "make")}))

    yield code
    sys.modules.pop("house", None)
    _clear()


def test_code_is_that_of_all_modules_in_use(house: Callable[..., Code]) -> None:
    assert list(house()) == [f"house.{name}" for name in sorted(MODULES)]
    assert "math" not in house()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        pytest.param("study", "  # a comment", "", id="a comment"),
        pytest.param("study", '"""Make the run."""', '"""Make it."""', id="a docstring"),
        pytest.param("study", '"""A study."""', "", id="a module's docstring"),
        pytest.param("nets", '"""Nothing but this."""', '"""Other words."""', id="a body that is a docstring"),
        pytest.param("nets", '"""A network."""', "", id="a class's docstring"),
        pytest.param("study", "config: dict, needs) -> None", "config: 'Config', needs)", id="annotations"),
        pytest.param("study", "total: float", "total: 'Tensor'", id="a variable's annotation"),
        pytest.param("study", "return 1", "return 2", id="a function beside it"),
        pytest.param("study", "UNUSED = 1", "UNUSED = 2", id="a constant that nothing uses"),
        pytest.param("helpers", "return x\n", "return -x\n", id="a function that is imported, not used"),
        pytest.param("deeper", "return x\n", "return -x\n", id="a function beside a helper"),
        pytest.param("nets", "width: int = 3", "width: int = 4", id="another class of the module"),
        pytest.param("deeper", "def aside(x)", "class New:\n            x = 1\n        def aside(x)", id="a class"),
        pytest.param("deeper", "3 * x", "(3\n             * x)", id="layout"),
    ],
)
def test_what_does_not_decide_changes_no_code(house: Callable[..., Code], module: str, old: str, new: str) -> None:
    assert house(**{module: (old, new)}) == house()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        pytest.param("study", "total)", "total + 1)", id="the function"),
        pytest.param("study", "RATE = 0.1", "RATE = 0.2", id="a constant"),
        pytest.param("study", "needs)", "needs=None)", id="a default value"),
        pytest.param("nets", "return x + ", "return x - ", id="a class's method"),
        pytest.param("nets", "return 1", "return 2", id="a base class"),
        pytest.param("nets", "class Net", "@dataclass\n        class Net", id="a decorator"),
        pytest.param("helpers", '"scale": 2', '"scale": 4', id="a helper's constant in another module"),
        pytest.param("deeper", "3 * x", "4 * x", id="a helper's helper"),
        pytest.param("deeper", '"ignore"', '"error"', id="an effect of a module"),
        pytest.param("lazily", "weights.bin", "other.bin", id="a lazily imported helper"),
    ],
)
def test_what_decides_changes_the_code_of_its_module(
    house: Callable[..., Code], module: str, old: str, new: str
) -> None:
    before, after = house(), house(**{module: (old, new)})
    assert {name for name in before if before[name] != after[name]} == {f"house.{module}"}
    assert list(before) == list(after)


def test_another_helper_brings_its_module_in(house: Callable[..., Code]) -> None:
    after = house(helpers=("factor(x) *", ""))
    assert set(house()) - set(after) == {"house.deeper"}


def test_a_packaged_file_counts_as_its_content(
    house: Callable[..., Code], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "ASSETS", tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"one")
    before = house()
    (tmp_path / "unused.bin").write_bytes(b"three")
    assert house() == before
    (tmp_path / "weights.bin").write_bytes(b"two")
    after = house()
    assert {name for name in before if before[name] != after[name]} == {"house.lazily"}


def test_methods_of_a_config_are_code_of_its_run(house: Callable[..., Code], tmp_path: Path) -> None:
    """A config is passed in, so that no name leads to it: its class counts, and those of the configs in it."""
    settings = """
    from dataclasses import dataclass, field

    @dataclass(frozen=True)
    class Inner:
        def width(self):
            return 3

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = field(default_factory=Inner)
    """
    path = tmp_path / "house" / "settings.py"
    path.write_text(textwrap.dedent(settings))
    house()
    config = importlib.import_module("house.settings").Outer()
    sys.modules.pop("house.settings")
    before = identify(config, trivial.make).code
    path.write_text(textwrap.dedent(settings).replace("return 3", "return 4"))
    house()
    after = identify(config, trivial.make).code
    assert {name for name in before if before[name] != after[name]} == {"house.settings"}


# --- the project's own code -----------------------------------------------------------------------------------------


def depends(make: Callable[..., object], symbol: Symbol, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Tell whether an edit of a symbol changes the code of a run that `make` makes."""
    roots = frozenset({Symbol(make.__module__, make.__qualname__)})
    text = identity._text
    with monkeypatch.context() as edited:
        edited.setattr(identity, "_text", lambda each: "edited" if each == symbol else text(each))
        changed = code_of.__wrapped__(roots)
    return changed != code_of(roots)


def test_an_edited_measure_makes_those_runs_again_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    iou = Symbol("skdcgn.measure.fidelity", "mask_iou")
    for make in (make_student, make_reading, make_miniature):
        assert depends(make, iou, monkeypatch), make
    for make in (make_cgn, make_part, make_classifier, make_ensemble):
        assert not depends(make, iou, monkeypatch), make


def test_runs_depend_on_the_code_that_they_reach_by_way_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert depends(make_student, Symbol("skdcgn.tinygan.losses", "pixel_kl"), monkeypatch)
    assert depends(make_student, Symbol("skdcgn.training", "Trainer"), monkeypatch)
    assert depends(make_student, Symbol("skdcgn.runs.loop", "train"), monkeypatch)
    assert not depends(make_cgn, Symbol("skdcgn.tinygan.losses", "pixel_kl"), monkeypatch)
