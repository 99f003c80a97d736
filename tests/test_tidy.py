"""The house rules that no linter knows. Each message says what to do."""

import ast
import re
import statistics
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "headframe").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
FUNCTIONS = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
FRAMEWORK = ("migrations",)


def lines(node):
    return node.end_lineno - node.lineno + 1


def test_functions_fit_on_a_screen():
    long = [f"{path.relative_to(ROOT)}: {node.name} has {lines(node)} lines, split it" for path, node in FUNCTIONS if lines(node) > 60]
    assert not long, long
    assert statistics.mean(lines(node) for _, node in FUNCTIONS) <= 12


def test_files_have_at_most_500_lines():
    assert not [f"{path.relative_to(ROOT)}: split it" for path in SOURCES if len(path.read_text().splitlines()) > 500]


def test_every_module_says_what_it_is_for():
    assert not [str(path) for path, tree in TREES.items() if not ast.get_docstring(tree)]


def test_public_functions_of_the_pure_core_are_documented():
    core = ("model", "placement", "billing", "reconcile")
    bare = [
        f"{path.name}: {node.name}"
        for path, tree in TREES.items()
        if path.relative_to(ROOT / "src" / "headframe").parts[0] in core
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not bare, bare


def test_nothing_is_left_to_do_later():
    words = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
    assert not [str(path) for path in SOURCES if words.search(path.read_text())]


def test_no_module_is_named_for_nothing():
    assert not [str(path) for path in SOURCES if path.stem in {"utils", "helpers", "common", "manager", "misc"}]


def test_no_large_file_is_in_the_repository():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [ROOT / name for name in listed.stdout.split("\0") if name]
    large = [str(path) for path in names if path.exists() and path.stat().st_size > 300_000]
    assert not large, f"over 300 kB: {large}"


def test_nothing_committed_names_an_index_or_a_path_of_a_machine():
    hosts = re.compile(
        "|".join(("py" + r"pi\.org", "python" + "hosted", "registry." + "npmjs", "deb." + r"debian\.org", "/ro" + "ot/", "/ho" + r"me/\w"))
    )
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True).stdout.split("\0")
    found = [
        name
        for name in listed
        if name and (ROOT / name).exists() and (ROOT / name).suffix != ".png" and hosts.search((ROOT / name).read_text(errors="replace"))
    ]
    assert not found, found


def test_the_changelog_has_a_place_for_what_comes():
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readmes_commands_are_the_makefiles():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make (\w+)", (ROOT / "README.md").read_text())) <= targets


def test_links_in_the_documentation_lead_somewhere():
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "rfd").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken, broken


def test_the_generated_reference_is_up_to_date():
    import generate

    for path, text in generate.pages().items():
        assert path.read_text() == text, f"{path.name} is out of date: run `make docs`"


COMPILED = [ROOT / name for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["headframe"]["compiled"]]


def test_what_can_be_compiled_waits_for_nothing():
    """mypyc's coroutines mix up each other's exceptions where one waits in an `except` or a `finally`."""
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not [
        f"{path.name}:{node.lineno}: move it to a module that is not compiled"
        for path in COMPILED
        for node in ast.walk(TREES[path])
        if isinstance(node, waiting)
    ]


def test_nothing_that_can_be_compiled_asks_again_for_none_after_a_call():
    """A type that was narrowed to None stays so for mypyc, whatever was called since: the second question then fails. (That the answer is yes it finds itself.)"""
    found = []
    for path, function in FUNCTIONS:
        if path not in COMPILED:
            continue
        calls = [node.lineno for node in ast.walk(function) if isinstance(node, ast.Call)]
        none = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is None:
                for target in node.targets:
                    none.setdefault(ast.unparse(target), []).append(node.lineno)
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot) and ast.unparse(node.comparators[0]) == "None":
                asked = ast.unparse(node.left)
                found += [f"{path.name}:{node.lineno}: {asked} was set to None in line {line}: ask in a function of its own"
                          for line in none.get(asked, []) if "." in asked and any(line <= call < node.lineno for call in calls)]  # fmt: skip
    assert not found
