"""Who may import whom, what is public, and that importing variegate stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import variegate

SOURCE = Path(variegate.__file__).parent
MODULES = sorted(path for path in SOURCE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names inside variegate that a module imports, anywhere in it."""
    package = ("variegate", *path.relative_to(SOURCE).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("variegate")}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            if module.startswith("variegate"):
                names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_follow_the_arrows(path: Path) -> None:
    here = path.relative_to(SOURCE).parts
    names = imported(path)
    if here[0] == "stages" and len(here) > 2:
        others = {name for name in names if name.startswith("variegate.stages.") and name.split(".")[2] != here[1]}
        assert not others, f"a stage imports another stage: {others}"
    if here[0] not in {"cli.py", "__main__.py"}:
        assert not {name for name in names if name.startswith("variegate.cli")}
    if here[0] in {"errors.py", "records.py"}:
        assert names <= {"variegate.errors", "variegate.records"}
    if here[0] == "executors":
        known = ("variegate.executors", "variegate.ending", "variegate.errors", "variegate.records", "variegate.cost")
        assert all(name.startswith(known) for name in names), names
    if here[0] == "backends":
        assert not {
            name for name in names if name.startswith(("variegate.stages", "variegate.pipeline", "variegate.store"))
        }


def test_report_and_recipes_need_no_torch() -> None:
    code = (
        "import sys, variegate.stages.report.stage, variegate.recipe, variegate.cli, variegate.api\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_sorted_and_reachable() -> None:
    assert variegate.__all__ == sorted(variegate.__all__)
    for name in variegate.__all__:
        assert getattr(variegate, name) is not None
    with pytest.raises(AttributeError):
        _ = variegate.nonsense


def test_imports_are_absolute() -> None:
    relative = [path.name for path in MODULES if re.search(r"^\s*from \.", path.read_text(), flags=re.MULTILINE)]
    assert not relative


def test_the_lock_holds_every_dependency_in_a_version_that_is_allowed() -> None:
    """An extra that an error message names, or a bound that was moved, is nothing while the lock says otherwise."""
    root = SOURCE.parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    lines = (root / "requirements.lock").read_text().splitlines()
    locked = dict(line.split(" ")[0].split("==") for line in lines if re.match(r"[\w.-]+==", line))
    for requirement in map(Requirement, wanted):
        if requirement.name != "variegate":
            name = canonicalize_name(requirement.name)
            assert requirement.specifier.contains(locked[name]), f"{requirement}, locked {name} {locked[name]}"
