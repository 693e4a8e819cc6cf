"""The tables hold, the import graph is as drawn, and the public surface is there."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from inspect import isabstract, isclass
from pathlib import Path
from typing import Any

import pytest

import offramp
from offramp.errors import UnknownName, UnsupportedBackbone
from offramp.model.backbones.base import Backbone
from offramp.model.backbones.registry import BACKBONES, load_backbone
from offramp.policies.base import Policy, WrapperPolicy
from offramp.policies.registry import POLICIES, WRAPPERS
from offramp.registry import load
from offramp.training.objectives.base import Objective
from offramp.training.objectives.registry import OBJECTIVES

ROOT = Path(offramp.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
ROWS = [
    (table, name, kind)
    for table, kind in ((POLICIES, Policy), (WRAPPERS, Policy), (OBJECTIVES, Objective), (BACKBONES, Backbone))
    for name in table
]


# --- tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "name", "kind"), ROWS, ids=[name for _, name, _ in ROWS])
def test_every_row_is_a_finished_class_of_its_kind(table: dict[str, str], name: str, kind: type[Any]) -> None:
    found = load(table, name)
    assert issubclass(found, kind)
    assert not isabstract(found)
    assert f"{found.__module__}:{found.__qualname__}" == table[name]


@pytest.mark.parametrize("name", [*POLICIES, *WRAPPERS, *OBJECTIVES])
def test_names_have_hyphens(name: str) -> None:
    assert name.replace("-", "").isalnum()
    assert name == name.lower()


@pytest.mark.parametrize("table", [{**POLICIES, **WRAPPERS}, OBJECTIVES])
def test_every_finished_policy_and_objective_has_a_row(table: dict[str, str]) -> None:
    kind = Objective if table is OBJECTIVES else Policy
    for name in table:
        load(table, name)
    classes = {cls for cls in subclasses(kind) if cls.__module__.startswith("offramp.") and not isabstract(cls)}
    assert {f"{cls.__module__}:{cls.__qualname__}" for cls in classes} == set(table.values())


def subclasses(kind: type[Any]) -> set[type[Any]]:
    return {below for child in kind.__subclasses__() for below in {child, *subclasses(child)}}


def test_wrappers_are_those_of_the_table() -> None:
    """A wrapper's parameter is a field of it, and all policies around another one are wrappers."""
    for name, row in {**POLICIES, **WRAPPERS}.items():
        policy = load({name: row}, name)
        names = {field.name for field in fields(policy)}
        assert ("policy" in names) == issubclass(policy, WrapperPolicy) == (name in WRAPPERS), name
        if name in WRAPPERS:
            assert policy.parameter in names - {"policy"}, name


def test_an_encoder_that_is_not_known_names_the_ones_that_are() -> None:
    with pytest.raises(UnsupportedBackbone, match="'gpt2' is not supported; supported: albert, bert, camembert"):
        load_backbone("gpt2")


def test_a_name_far_from_all_gets_no_guess() -> None:
    with pytest.raises(UnknownName) as caught:
        load(OBJECTIVES, "qqq")
    assert "did you mean" not in str(caught.value)


# --- import graph -------------------------------------------------------------------------------------------


def top_level_imports(path: Path) -> set[str]:
    """The modules of offramp that a module names outside functions, for types alone too."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    guarded = [inner for node in body if isinstance(node, ast.If) for inner in node.body]
    names: set[str] = set()
    for node in [*body, *guarded]:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import from the defining module"
            names.add(str(node.module))
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name for name in names if name.split(".")[0] == "offramp"}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


GRAPH = {dotted(path): top_level_imports(path) for path in MODULES}


def test_package_init_files_are_empty() -> None:
    inits = [path for path in MODULES if path.name == "__init__.py" and path.parent != ROOT]
    assert len(inits) >= 4
    assert [path for path in inits if path.read_text(encoding="utf-8").strip()] == []


def test_every_folder_of_code_is_a_package() -> None:
    assert [path for path in MODULES if not (path.parent / "__init__.py").exists()] == []


def test_imports_name_the_defining_module() -> None:
    packages = {dotted(path) for path in MODULES if path.name == "__init__.py"} - {"offramp"}
    for module, imported in GRAPH.items():
        assert not imported & packages, module
        assert imported <= set(GRAPH), module
        assert "offramp" not in imported or module == "offramp.cli.main", f"{module} imports the root"


def test_there_is_no_import_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for imported in sorted(GRAPH[module]):
                visit(imported, (*above, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


LAYERS = (
    ("errors",),
    ("registry",),
    ("types", "data"),
    ("policies",),
    ("early_exit", "evaluation"),
    ("calibration", "model"),
    ("training", "inference"),
    ("report", "studies", "serving"),
    ("bench", "cluster"),
    ("cli",),
)
LAYER_OF = {package: number for number, packages in enumerate(LAYERS) for package in packages}


def all_imports(path: Path) -> set[str]:
    """The modules of offramp that a module names in any import, those of functions and for types alone too."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.startswith("offramp.")}


def test_every_module_belongs_to_a_package_of_the_layers() -> None:
    modules = {path.stem for path in ROOT.glob("*.py")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert modules == {"__init__", "__main__", "errors", "registry"}
    assert packages | modules - {"__init__", "__main__"} == set(LAYER_OF)


@pytest.mark.parametrize("package", LAYER_OF)
def test_a_package_imports_only_from_layers_above_its_own(package: str) -> None:
    for path in [*(ROOT / package).rglob("*.py"), *ROOT.glob(f"{package}.py")]:
        others = {name.split(".")[1] for name in all_imports(path)} - {package}
        wrong = {other for other in others if LAYER_OF.get(other, 0) >= LAYER_OF[package]}
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("heavy", ["torch", "transformers", "datasets", "numpy"])
@pytest.mark.parametrize("module", ["offramp", "offramp.cli.main"])
def test_importing_costs_nothing(module: str, heavy: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"there is no {module} yet")
    program = f"import sys, {module}; sys.exit('{heavy}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


EXTRAS = {"altair", "ctranslate2", "jinja2", "matplotlib", "nncf", "onnx", "onnxruntime", "onnxscript", "openvino"}
"""Top names of packages that `pip install offramp` leaves out."""


def loaded_with(module: str) -> set[str]:
    """The modules that importing a module loads: its imports outside functions, and theirs."""
    loaded, left = set[str](), {module}
    while left:
        name = left.pop()
        loaded.add(name)
        if name.split(".")[0] != "offramp":
            continue
        path = ROOT.parent.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            left |= set(names) - loaded
    return loaded


@pytest.mark.parametrize("module", sorted({f"offramp.{home}" for home in offramp._HOME.values()}))
def test_public_names_need_no_extra(module: str) -> None:
    assert not {name.split(".")[0] for name in loaded_with(module)} & EXTRAS


def test_only_the_decision_compares_scores_with_a_threshold() -> None:
    """`policies/decision.py:continues` is the one place, so that replay, certificates and intervals agree with it."""
    compared = {
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Lt, ast.GtE))
        if isinstance(node.comparators[0], ast.Name) and node.comparators[0].id == "threshold"
    }
    assert compared == {"policies/decision.py"}


# --- public surface -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", offramp.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(offramp, name) is not None
    assert name in dir(offramp)


def test_the_contracts_names_are_public() -> None:
    """What other code relies on."""
    contract = (
        "MultiExitModel Bypass TokenExit ExitTrainer load_objective Trace record load_policy fit_policy replay "
        "calibrate Target certify Predictor"
    )
    assert set(contract.split()) <= set(offramp.__all__)


def test_public_names_are_the_defining_modules_own() -> None:
    for name in offramp.__all__:
        found = getattr(offramp, name)
        if isclass(found) or callable(found):
            assert found.__module__ == f"offramp.{offramp._HOME[name]}"


def test_no_module_hides_a_public_name() -> None:
    assert not {path.stem for path in ROOT.iterdir()} & set(offramp.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'entropy'"):
        _ = offramp.entropy


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.asname)
        for node in ast.walk(guarded)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(f"offramp.{home}", name) for name, home in offramp._HOME.items()}


def test_onnxruntime_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    """One module imports it; no other does so first, and the import leaves no device identifier in the home folder."""
    direct = re.compile(r"^ *(import onnxruntime|from onnxruntime)", re.MULTILINE)
    assert [path.name for path in MODULES if direct.search(path.read_text())] == ["runtime.py"]
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    program = [sys.executable, "-c", "import offramp.inference.onnx.session"]
    subprocess.run(program, check=True, env=environment | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
