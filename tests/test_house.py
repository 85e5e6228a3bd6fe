"""The rules of the house: imports point one way and in no circle; files and functions are short."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"swinbert": "modeling_swinbert", "swinbert.processing": "processing", "swinbert.training": "training"}
# A room may import those of its own floor and of the floors below.
FLOORS = {
    "swinbert.cli": 3,
    "swinbert.benchmarks": 2,
    "swinbert.captioning": 2,
    "swinbert.conversion": 2,
    "swinbert.deployment": 2,
    "swinbert.endurance": 3,
    "swinbert.training": 2,
    "swinbert.processing": 1,
    "swinbert.utils": 0,
}
# They stand beside the house: what registers everything, what starts the command, public names of other modules.
DOORS = {"swinbert.__main__", "swinbert.registration", "swinbert.exporting", "swinbert.quantization"}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return found


MODULES = modules()
FILES = sorted(MODULES.values())


def imported_at_once(module: str, file: Path) -> set[str]:
    """Modules of the package that `module` imports when it is imported: not in functions, nor for type checkers."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                visit(node.orelse)
            elif isinstance(node, ast.Try):
                visit(node.body)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parents, *([node.module] if node.module else [])])
                for alias in node.names:
                    name = f"{base}.{alias.name}"
                    found.add(name if name in MODULES else base)

    visit(ast.parse(file.read_text(encoding="utf-8")).body)
    return {name for name in found if name in MODULES and name not in (module, "swinbert")}


IMPORTS = {module: imported_at_once(module, file) for module, file in MODULES.items()}


def test_imports_are_found():
    assert "swinbert.processing.video_decoding_swinbert" in IMPORTS["swinbert.processing.pipeline_swinbert"]
    assert "swinbert.captioning" in IMPORTS["swinbert.training.evaluation.evaluate"]
    assert len(MODULES) > 100


def test_no_import_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"{' -> '.join(error.args[1])}")


def floor(module: str) -> int:
    """The model itself is on the ground floor."""
    return next((FLOORS[room] for room in FLOORS if f"{module}.".startswith(f"{room}.")), 0)


def test_imports_point_one_way():
    upwards = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if module not in DOORS and floor(other) > floor(module)
    ]
    assert not upwards


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.name != "forward"}
    assert not {name: length for name, length in lengths.items() if length > 60}
