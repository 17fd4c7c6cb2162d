"""The architecture is what the imports say: a folder is a floor, and imports go down only."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = {
    "console": 0,
    "numerics": 0,
    "coding": 1,
    "core": 2,
    "methods": 3,
    "jaxprs": 3,
    "storage": 4,
    "report": 5,
    "structure": 6,
    "training": 7,
    "distill": 8,
    "search": 9,
    "app": 10,
}
FILES = sorted((ROOT / "jaxprune").rglob("*.py"))


def floor(parts):
    return parts[1] if len(parts) > 1 and parts[0] == "jaxprune" else None


def imported(tree, package):
    """(module, names) of every import; relative ones start from the parts of the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield (
                [*base, *(node.module.split(".") if node.module else ())],
                [a.name for a in node.names],
            )
        elif isinstance(node, ast.Import):
            for a in node.names:
                yield a.name.split("."), []


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    here = floor(parts) if len(parts) > 2 else None
    for module, names in imported(ast.parse(file.read_text()), parts[:-1]):
        assert not (module[0] == "jax" and len(module) > 1 and module[1] == "_src"), (
            f"{file}: private JAX"
        )
        if module == ["jaxprune"] and here is not None and here != "app":
            raise AssertionError(f"{file} imports the public package from below")
        for target in [floor(module)] if len(module) > 1 else names:
            if here is None or target not in FLOORS or module[0] != "jaxprune" or target == here:
                continue
            assert FLOORS[target] < FLOORS[here], f"{file}: {here} may not import {target}"


@pytest.mark.parametrize(
    "line, module",
    [
        ("from . import a", ["jaxprune", "storage"]),
        ("from .a import b", ["jaxprune", "storage", "a"]),
        ("from ..numerics.a import b", ["jaxprune", "numerics", "a"]),
        ("from .. import report", ["jaxprune"]),
        ("from a.b import c", ["a", "b"]),
    ],
)
def test_relative_imports_are_understood(line, module):
    assert next(imported(ast.parse(line), ("jaxprune", "storage")))[0] == module


def test_the_reader_needs_numpy_alone():
    """It is run by its path where JAX is not: all else that it imports is beside it, and named
    relatively.
    """
    waiting = [ROOT / "jaxprune/storage/reader.py"]
    seen = set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        tree = ast.parse(file.read_text())
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level):
            folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            modules = [folder.with_suffix(".py")] if node.module else []
            waiting += [
                p for p in (*modules, *(folder / f"{a.name}.py" for a in node.names)) if p.exists()
            ]
        absolute = {m[0] for m, _ in imported(tree, ("relative",) * 3) if m[0] != "relative"}
        assert absolute <= {"numpy", *sys.stdlib_module_names}, f"{file} imports {sorted(absolute)}"
    assert len(seen) > 15
    assert (
        not {p.stem for p in (ROOT / "jaxprune/storage").iterdir()} & sys.stdlib_module_names
    )  # it is on sys.path


def test_every_public_name_has_one_address():
    import jaxprune as jp

    names = [n for n in dir(jp) if not n.startswith("_")]
    objects = [id(getattr(jp, n)) for n in names if callable(getattr(jp, n))]
    assert len(objects) == len(set(objects))


def test_import_is_light():
    code = (
        "import sys, time, jax; t = time.process_time(); import jaxprune; t = time.process_time() "
        "- t\n"
        "print([m for m in 'flax matplotlib optax orbax rich typer sklearn'.split() if m in "
        "sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout.strip() == "[]"
