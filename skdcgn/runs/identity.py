"""What a run depends on: its config, the files and runs that it reads, and the code that makes it.

The code is that of the function that makes the run and of everything first-party that it uses, found by following names
from there: functions, classes and constants, through any number of modules. Each counts as its syntax tree without
comments, docstrings and annotations. So an edited comment, figure or unrelated function changes no identity, and an
edited loss changes that of exactly the runs that use it. A string that names a packaged file (in `skdcgn/assets`)
stands for the file's content.

What is called on an object that is passed in (`run.log_metrics`, `source.render`) is not followed: classes count where
the code names them. Names are compared without regard to scope, which can only add a dependency, never miss one.
"""

import ast
import dataclasses
import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from skdcgn.files import sha256

_PACKAGE = "skdcgn"
Config = TypeVar("Config")
ASSETS = Path(__file__).parents[1] / "assets"


class Symbol(NamedTuple):
    """A name at the top level of a module; the empty name stands for what the module does when it is imported."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides the result of a run, in parts that can be compared one by one."""

    config: Mapping[str, str]
    """Fields by their dotted names, without `runtime` and paths: these say where and how a run executes."""
    inputs: Mapping[str, str]
    """What the run reads, by name: SHA-256 of a file, or the digest of another run."""
    code: Mapping[str, str]
    """Digest of what the run uses of each first-party module."""

    @cached_property
    def digest(self) -> str:
        """The identity in 16 hexadecimal digits."""
        return _digest(json.dumps(dataclasses.astuple(self), sort_keys=True))

    def differences(self, config: Mapping[str, str], inputs: Mapping[str, str], code: Mapping[str, str]) -> list[str]:
        """Name the fields, inputs and modules in which an earlier run differs, given as in the attributes."""
        changed = [
            f"{key} was {config.get(key, 'not there')}, is {self.config.get(key, 'not there')}"
            for key in _changed(self.config, config)
        ]
        changed += [f"another {key}" for key in _changed(self.inputs, inputs)]
        for module in _changed(self.code, code):
            changed.append(f"{module} {'changed' if module in self.code else 'is not used any more'}")
        return changed


def identify(config: Any, make: Callable[..., object], inputs: Mapping[str, str] | None = None) -> Identity:
    """Return the identity of a run.

    Args:
        config: a dataclass, perhaps of others: all that the run may depend on beside `inputs`.
        make: the function that makes the run; defined at the top level of a module.
        inputs: digests of what the run reads, by name.
    """
    roots = {Symbol(make.__module__, make.__qualname__)}
    roots |= {Symbol(kind.__module__, kind.__qualname__) for kind in _config_types(config)}
    return Identity(config_fields(config), dict(inputs or {}), code_of(frozenset(roots)))


def config_fields(config: Any) -> dict[str, str]:
    """Return the fields of a config that decide a result, as text by dotted names."""
    return {key: str(value) for key, value in flatten(_deciding(dataclasses.asdict(config))).items()}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys: {"loss": {"kl": 1}} becomes {"loss.kl": 1}."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def overrides(config: Any, default: Any, scope: Sequence[str]) -> str:
    """Say in what a config departs from its profile's default: `loss.kl=0.5, distill.steps=100`, or `none`.

    Args:
        config: the config of a run.
        default: the profile's.
        scope: fields that choose what to run rather than how, such as the data set and the seeds: left out.
    """
    ours, theirs = (flatten(dataclasses.asdict(each)) for each in (config, default))
    changed = [
        f"{key}={value}"
        for key, value in ours.items()
        if value != theirs[key] and not {key, key.split(".")[0]} & {*scope, "runtime"}
    ]
    return ", ".join(changed) or "none"


def derive(kind: type[Config], config: Any, **changes: Any) -> Config:
    """Return a config of another kind.

    Args:
        kind: a dataclass.
        config: has the values of its fields, as attributes of the same names.
        changes: fields that differ; one that is in neither keeps its default.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{**{name: getattr(config, name) for name in names if hasattr(config, name)}, **changes})


@cache
def code_of(roots: frozenset[Symbol]) -> dict[str, str]:
    """Return by module the digest of what some symbols use of it, themselves included."""
    found, waiting = set[Symbol](), list(roots)
    while waiting:
        symbol = waiting.pop()
        if symbol in found:
            continue
        found.add(symbol)
        waiting += [Symbol(symbol.module, ""), *_uses(symbol)]
    used: dict[str, dict[str, str]] = {}
    for module, name in found:
        used.setdefault(module, {})[name] = _text(Symbol(module, name))
    return {module: _digest(json.dumps(texts, sort_keys=True))[:8] for module, texts in sorted(used.items())}


def _config_types(config: Any) -> Iterator[type]:
    """Yield the classes of a config and of the configs in it: their methods are code that the run uses."""
    yield type(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)) and not isinstance(value, type):
            yield from _config_types(value)


def _deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _deciding(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key != "runtime" and value is not None and not isinstance(value, Path)
    }


def _changed(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    return [key for key in sorted({*new, *old}) if new.get(key) != old.get(key)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- reading modules


class _Bare(ast.NodeTransformer):
    """Removes what does not decide what code does: docstrings and annotations."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant("")  # the field itself stays: a dataclass is made of them
        return self.generic_visit(node)


@dataclasses.dataclass(frozen=True)
class _Module:
    """The top level of a module."""

    symbols: Mapping[str, list[ast.stmt]]
    """Statements by the name that they define; those under the empty name run when the module is imported."""
    imports: Mapping[str, Symbol]
    """Name to what it was imported as; a symbol without a name is a module."""


@cache
def _module(name: str) -> _Module | None:
    """Read a first-party module; None where there is none of this name."""
    package = name.partition(".")[0]
    spec = _spec(name) if package == _PACKAGE or not _installed(_spec(package)) else None
    if _installed(spec):
        return None
    symbols: dict[str, list[ast.stmt]] = {"": []}
    imports: dict[str, Symbol] = {}
    for statement in _flat(_Bare().visit(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))).body):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports |= _imported(statement)
            continue
        for defined in _defined(statement) or [""]:
            symbols.setdefault(defined, []).append(statement)
    return _Module(symbols, imports)


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _installed(spec: ModuleSpec | None) -> bool:
    """Whether a module is Python's or another project's, or none that has a source at all."""
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return True
    folders = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    return not spec.name.startswith(_PACKAGE) and spec.origin.startswith(tuple(folders))


def _flat(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield top-level statements, those under `if` and `try` as well, but for the script's own main block."""
    for statement in statements:
        if isinstance(statement, ast.If | ast.Try):
            if "__main__" in ast.unparse(getattr(statement, "test", ast.Constant(""))):
                continue
            for block in ("body", "handlers", "orelse", "finalbody"):
                yield from _flat(getattr(statement, block, []))
        else:
            yield from _flat(statement.body) if isinstance(statement, ast.ExceptHandler) else [statement]


def _defined(statement: ast.stmt) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return []


def _imported(statement: ast.Import | ast.ImportFrom) -> dict[str, Symbol]:
    """Return what an import statement binds."""
    if isinstance(statement, ast.ImportFrom):
        return {alias.asname or alias.name: Symbol(statement.module or "", alias.name) for alias in statement.names}
    return {alias.asname or alias.name.partition(".")[0]: Symbol(alias.name, "") for alias in statement.names}


@cache
def _uses(symbol: Symbol) -> frozenset[Symbol]:
    """Return the first-party symbols that a symbol's own statements name."""
    module = _module(symbol.module)
    statements = [] if module is None else module.symbols.get(symbol.name.partition(".")[0], [])
    found = set[Symbol]()
    for statement in statements:
        nodes = list(ast.walk(statement))
        inside = [_imported(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        imports = {**module.imports, **{name: target for bound in inside for name, target in bound.items()}}
        attributes = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
        for node in nodes:
            if not isinstance(node, ast.Name):
                continue
            if node.id in module.symbols:
                found.add(Symbol(symbol.module, node.id))
            elif node.id in imports:
                found |= _resolved(imports[node.id], attributes.get(id(node)))
    return frozenset(found)


def _resolved(target: Symbol, attribute: str | None) -> set[Symbol]:
    """Follow an imported name to where it is defined; of a module it is the attribute that is used, or everything."""
    module = _module(target.module)
    if module is None:
        return set()
    if target.name and target.name in module.symbols:
        return {target}
    if target.name in module.imports:
        return _resolved(module.imports[target.name], attribute)
    whole = f"{target.module}.{target.name}" if target.name else target.module
    inner = _module(whole)
    if inner is None:
        return set()
    names = inner.symbols if attribute is None else {attribute} & {*inner.symbols, *inner.imports}
    return {found for name in names if name for found in _resolved(Symbol(whole, name), None)}


@cache
def _text(symbol: Symbol) -> str:
    """Return a symbol's statements as text, with the checksums of the packaged files that they name."""
    module = _module(symbol.module)
    statements = [] if module is None else module.symbols.get(symbol.name.partition(".")[0], [])
    strings = [node.value for each in statements for node in ast.walk(each) if isinstance(node, ast.Constant)]
    files = sorted({Path(text).name for text in strings if isinstance(text, str)} & _packaged())
    return "\n".join([*map(ast.unparse, statements), *(f"{name} {sha256(ASSETS / name)}" for name in files)])


@cache
def _packaged() -> frozenset[str]:
    return frozenset(path.name for path in ASSETS.iterdir() if path.is_file())
