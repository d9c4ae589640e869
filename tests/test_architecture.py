"""The rooms: imports point down, wings know nothing of each other, no module bears the name of a dependency."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "doge_ds"
FILES = sorted(PACKAGE.rglob("*.py"))
WINGS = ["reweight", "data", "training", "evaluation", "reporting"]
GROUND_FLOOR = ["config", "config_mistakes", "config_sections", "mixture", "errors", "json_files", "model_files"]


def imports(file: Path) -> set[str]:
    """Full names of all modules that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file} has a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(module: str) -> str | None:
    """doge_ds.data.order -> data; doge_ds.config -> config; torch -> None."""
    parts = module.split(".")
    return parts[1] if parts[0] == "doge_ds" and len(parts) > 1 else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    rooms = {found for name in imports(file) if (found := room(name)) and found not in ("__version__", here)}
    if here in WINGS:
        assert rooms <= set(GROUND_FLOOR), f"a wing may import the ground floor only, not {rooms}"
    elif here in GROUND_FLOOR:
        assert rooms <= {"config_mistakes", "config_sections", "errors", "json_files"}
    external = {name.split(".")[0] for name in imports(file)}
    if here != "training":
        assert "deepspeed" not in external
    if here not in ("training", "evaluation"):
        assert not {name for name in imports(file) if name.startswith("torch.distributed")}


@pytest.mark.parametrize("file", sorted((PACKAGE / "data").rglob("*.py")), ids=lambda file: file.stem)
def test_training_needs_nothing_that_reads_or_prepares_text(file: Path) -> None:
    here = file.relative_to(PACKAGE / "data").parts[0].removesuffix(".py")
    names = {".".join(name.split(".")[:3]) for name in imports(file)}
    if here in ("tokens", "tokenizer", "subsets", "order", "permutation", "windows", "loader", "reading"):
        assert "doge_ds.data.preparing" not in names
    if here in ("tokens", "tokenizer", "subsets", "order", "permutation", "windows", "loader"):
        assert "doge_ds.data.reading" not in names
    if here in ("reading", "preparing"):
        assert not names & {"doge_ds.data.prepare", "doge_ds.data.tokenizer_command", "doge_ds.data.verify"}


def test_there_are_files_to_look_at() -> None:
    assert {path.parent.name for path in FILES} >= {*WINGS, "doge_ds"}


def test_no_module_bears_the_name_of_a_dependency_or_of_the_standard_library() -> None:
    taken = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    taken -= {"doge_ds"}
    on_the_path = [*PACKAGE.iterdir(), *(ROOT / "eval").iterdir()]
    names = {path.stem for path in on_the_path if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not (names - {"__init__"}) & taken


@pytest.mark.parametrize("statement", ["import doge_ds", "import doge_ds.cli", "import doge_ds.config"])
def test_light_imports_load_neither_torch_nor_deepspeed(statement: str) -> None:
    check = f"{statement}; import sys; sys.exit(any(m in sys.modules for m in ('torch', 'deepspeed', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
