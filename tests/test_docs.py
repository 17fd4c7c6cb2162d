"""Every example that a reader meets runs and prints what it says: docstrings, README and docs."""

import doctest
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in (ROOT / "jaxprune").rglob("*.py")
    if p.name != "__init__.py"
)
PAGES = [
    p
    for p in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "experiments/README.md",
    )
    if p.exists()
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    names = {"jp": jp, "jnp": jnp}
    with jax.numpy_dtype_promotion("standard"):  # as readers have it
        failed, _ = doctest.testmod(
            module, optionflags=doctest.NORMALIZE_WHITESPACE, extraglobs=names
        )
    assert failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_blocks_of_a_page(page, tmp_path, monkeypatch):
    """With JAX's own dtype promotion, as readers have it."""
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):
        run_blocks(page)


def run_blocks(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    names: dict = {}
    for block in blocks:
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, names, page.name, str(page), 0)
            assert (
                doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
                .run(test, clear_globs=False)
                .failed
                == 0
            )
            names.update(test.globs)
        else:
            exec(compile(block, str(page), "exec"), names)


def test_public_functions_have_examples():
    lacking = []
    for name in dir(jp):
        thing = getattr(jp, name)
        if name.startswith("_") or not callable(thing) or isinstance(thing, type):
            continue
        if ">>>" not in (thing.__doc__ or "") and name not in (
            "freeze",
            "every",
            "between",
            "identity",
        ):
            lacking.append(name)
    assert not lacking
