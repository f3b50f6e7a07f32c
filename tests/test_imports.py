"""Imports point one way: the table of DESIGN.md, imports inside functions counted."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import groupsae

PACKAGE = Path(groupsae.__file__).parent

VALUES = {"errors", "hookpoints", "partition", "estimate", "units", "metrics", "config", "storage", "records"}
"""Value types: no torch, no model."""

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "estimate": set(),
    "progress": set(),
    "hookpoints": {"errors"},
    "partition": {"errors", "hookpoints"},
    "units": set(),
    "metrics": {"units"},
    "config": {"errors"},
    "storage": {"errors"},
    "lock": {"errors", "storage"},
    "interrupt": {"errors"},
    "records": {"errors", "hookpoints", "partition", "estimate", "config", "storage", "lock"},
    "analysis": VALUES,
    "oom": {"errors", "progress"},
    "text": VALUES,
    "gguf_files": {"errors", "oom"},
    "model_directory": {"errors", "hookpoints"},
    "model_structure": {"errors", "hookpoints"},
    "models": {*VALUES, "gguf_files", "model_directory", "model_structure", "text"},
    "distributed": {"errors"},
    "activations": {*VALUES, "lock", "progress", "oom", "model_structure", "text", "distributed"},
    "grouping": {*VALUES, "activations", "distributed"},
    "hub": {*VALUES, "progress"},
    "saes": {*VALUES, "hub"},
    "planning": {*VALUES, "oom", "activations", "grouping"},
    "training": {
        *VALUES,
        "oom",
        "activations",
        "saes",
        "planning",
        "distributed",
    },  # timing measures the Rates that planning reckons with
    "evaluation": {*VALUES, "oom", "model_structure", "text", "activations", "saes", "distributed"},
    "interpretability": {*VALUES, "model_structure", "activations", "saes", "evaluation"},
    "browser": {*VALUES, "interpretability"},
    "report": {*VALUES, "analysis"},
    "interop": {*VALUES, "progress", "models", "model_structure", "activations", "saes"},
    "attach": {*VALUES, "model_structure", "saes"},
}
"""Which parts of the package each part may import. Only `recipes` and `cli` see all of it."""
LOADED_BY_NAME = {("groupsae.saes.suite", "groupsae.attach")}
"""Modules that load another one by its name when a method is called: it lies above them, for the user's convenience."""
READS_PICKLES = "groupsae.interop.files"
TOPMOST = {"recipes": {"cli"}, "cli": {"__main__"}, "__main__": set()}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: set[str]) -> set[str]:
    """The dotted names that a module imports, wherever in it; of this package, the modules themselves."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in inner}
    return names


MODULES = modules()
IMPORTS = {name: imported(path, set(MODULES)) for name, path in MODULES.items()}
INSIDE = {name: {found for found in names if found.split(".")[0] == "groupsae"} for name, names in IMPORTS.items()}
BELOW_THE_ROOT = [name for name in MODULES if name != "groupsae"]


def part(module: str) -> str:
    """The part of the package that a module belongs to: `saes` for `groupsae.saes.suite`."""
    return [*module.split("."), ""][1]


def reached(module: str) -> set[str]:
    """Every name that importing a module can lead to; packages on the way are imported as well."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting.extend(IMPORTS.get(name, ()))
        parents = [name.rsplit(".", up)[0] for up in range(1, name.count(".") + 1)]
        waiting.extend(parent for parent in parents if parent != "groupsae")
    return seen


@pytest.mark.parametrize("module", BELOW_THE_ROOT)
def test_imports_point_one_way(module):
    here = part(module)
    assert here in MAY_IMPORT or here in TOPMOST, f"{here} has no place in the table"
    others = {part(name) for name in INSIDE[module]} - {here}
    assert "" not in others, f"{module} imports the root, which holds the public names for users"
    if here in TOPMOST:
        assert not others & TOPMOST[here]
    else:
        assert others <= MAY_IMPORT[here], f"{module} imports {sorted(others - MAY_IMPORT[here])}"


def test_what_is_loaded_by_name_is_listed():
    found = set()
    for module in BELOW_THE_ROOT:
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                found.update((module, name.value) for name in node.args if isinstance(name, ast.Constant))
    assert found == LOADED_BY_NAME


def test_the_table_itself_has_no_circle():
    order: list[str] = []
    left = dict(MAY_IMPORT)
    while left:
        free = [name for name, needs in left.items() if needs <= set(order)]
        assert free, f"{sorted(left)} import each other"
        order += free
        for name in free:
            del left[name]


def test_the_table_names_parts_that_exist_or_are_planned():
    assert {*MAY_IMPORT, *TOPMOST} - {part(name) for name in BELOW_THE_ROOT} <= {"interop"}


@pytest.mark.parametrize(
    ("where", "never"),
    [
        (
            "saes",
            {
                "groupsae.activations",
                "groupsae.models",
                "groupsae.model_structure",
                "groupsae.text.tokens",
                "groupsae.text.documents",
                "transformers",
                "tokenizers",
            },
        ),
        ("report", {"torch", "transformers", "safetensors.torch"}),
        ("browser", {"torch", "transformers", "matplotlib"}),
        ("analysis", {"torch", "transformers", "matplotlib", "jinja2", "rich", "groupsae.report"}),
        ("metrics", {"torch", "matplotlib", "numpy"}),
        ("config", {"torch", "transformers"}),
        ("partition", {"torch", "transformers"}),
        ("records", {"torch", "transformers"}),
        ("evaluation", {"groupsae.training.trainer", "groupsae.training"}),
        (
            "training",
            {
                "groupsae.evaluation",
                "groupsae.models",
                "groupsae.model_structure",
                "groupsae.text.tokens",
                "transformers",
            },
        ),
        ("grouping", {"groupsae.models", "groupsae.model_structure", "groupsae.text.tokens", "transformers"}),
        ("planning", {"transformers"}),
    ],
)
def test_what_a_part_never_leads_to(where, never):
    for module in MODULES:
        if part(module) == where:
            assert not never & reached(module), f"{module} leads to {sorted(never & reached(module))}"


def test_the_public_names_can_all_be_had():
    assert groupsae.__all__
    for name in groupsae.__all__:
        assert getattr(groupsae, name) is not None


@pytest.mark.parametrize(
    "code",
    [
        "import groupsae",
        "import groupsae.cli",
        "import groupsae.cli; groupsae.cli.main(['--help'])",
        "import groupsae.cli; groupsae.cli.main(['train', '--help'])",
        "import groupsae.cli; groupsae.cli.main(['init', '{folder}/new.toml'])",
        "import groupsae.cli; groupsae.cli.main(['show', '{folder}'])",
        "import groupsae.report",
        "import groupsae.analysis.summary",
        "import groupsae.cli.tables",
    ],
)
def test_what_needs_no_torch_imports_none(code, tmp_path):
    script = f"import sys; {code.format(folder=tmp_path)}; print({{'torch', 'transformers'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_unpickled_or_evaluated(module):
    assert not IMPORTS[module] & {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "compile"}, f"line {node.lineno} calls {node.func.id}"
        if isinstance(node, ast.ImportFrom):
            assert not (node.module in {"torch", "numpy"} and {alias.name for alias in node.names} & {"load", "save"})
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            forbidden = {("torch", "load"), ("torch", "save"), ("np", "load")}
            assert (node.value.id, node.attr) not in forbidden or module == READS_PICKLES


def test_the_one_module_that_reads_pickles_reads_tensors_only():
    tree = ast.parse(MODULES[READS_PICKLES].read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert len(calls) == 1
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0].keywords}
    assert options["weights_only"] == "True"
    arrays = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and "read_array" in ast.unparse(node.func)]
    assert all("allow_pickle=False" in ast.unparse(node) for node in arrays if node.args and node.keywords)
