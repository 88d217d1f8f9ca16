"""The gates: what is generated is what is committed, every notebook runs, imports go one way."""

import ast
import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import readme
from conftest import ROOT

BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
LAYERS = ["core", "store", "vision", "twin", "scheduling", "predict", "live", "loop", "sweeps", "ui", "cli"]
ENGINES = {"vision", "twin", "scheduling", "predict", "live"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    "A copy of what nbdev reads and writes."
    target = tmp_path_factory.mktemp("gate")
    for name in ("nbs", "dtwb"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, target / name)
    return target


def changed(copy: Path, folder: str) -> list[str]:
    "The files below `folder` that differ between the copy and the project."
    pattern = "*.ipynb" if folder == "nbs" else "*.py"
    here, there = ({p.relative_to(r) for p in (r / folder).rglob(pattern)} for r in (ROOT, copy))
    here = {p for p in here if ".ipynb_checkpoints" not in p.parts}
    differ = {p for p in here & there if not filecmp.cmp(ROOT / p, copy / p, shallow=False)}
    return sorted(map(str, (here ^ there) | differ))


def nbdev(command: str, *args: str, cwd: Path, timeout: float = 600) -> subprocess.CompletedProcess:
    return subprocess.run([BIN / command, *args], cwd=cwd, capture_output=True, text=True, timeout=timeout)


def test_clean_changes_nothing(copy):
    done = nbdev("nbdev-clean", cwd=copy)
    assert done.returncode == 0, done.stderr
    assert changed(copy, "nbs") == [], "run nbdev-clean and commit what it changes"


def test_export_changes_nothing(copy):
    done = nbdev("nbdev-export", cwd=copy)
    assert done.returncode == 0, done.stderr
    assert changed(copy, "dtwb") == [], "run nbdev-export and commit what it changes"


def test_readme_matches_index():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme.readme(), "run `make readme`"


@pytest.mark.parametrize("notebook", [str(path) for path in NOTEBOOKS])
def test_notebook_runs(forked, notebook):
    said = forked(notebook=notebook)
    assert said["code"] == 0, said["out"] + said["err"]


def test_papermill_parameters_survive_cleaning(copy):
    templates = sorted((copy / "nbs" / "experiments").glob("*.ipynb"))
    assert templates
    for template in templates:
        cells = json.loads(template.read_text(encoding="utf-8"))["cells"]
        assert any("parameters" in cell["metadata"].get("tags", []) for cell in cells), template.name


def imports(path: Path) -> set[str]:
    "The dtwb folders that a module imports from."
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [above, node.module]))
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {parts[1] for name in names if (parts := name.split("."))[0] == "dtwb" and len(parts) > 1} & set(LAYERS)


@pytest.mark.parametrize("module", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "dtwb").rglob("*.py")))
def test_imports_go_one_way(module):
    path = ROOT / module
    folder = Path(module).parts[1].removesuffix(".py")
    if folder not in LAYERS:
        return
    for other in imports(path) - {folder}:
        assert LAYERS.index(other) < LAYERS.index(folder), f"{module} imports from {other}, which is below it"
        assert not {folder, other} <= ENGINES, f"{module} imports from {other}: engines meet in loop"


def test_outputs_are_small():
    large = {str(p): (ROOT / p).stat().st_size // 1024 for p in NOTEBOOKS if (ROOT / p).stat().st_size > 400 * 1024}
    assert not large, f"KB: {large}"
