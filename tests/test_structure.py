"""The shape of the code: imports run one way, heavy libraries stay where they belong, a device needs no torch."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

SMALL = {"subnets", "subnets.errors", "subnets.bundle", "subnets.spec", "subnets.data", "subnets.heap"}
ALLOWED = {
    "cli": {"*"},
    "agent": {"policies", "calibration", "backends", "sensors", *SMALL},
    "simulation": {"policies", "calibration", *SMALL},
    "policies": {"calibration.table", "calibration.frontier", "subnets.errors"},
    "calibration": {"backends", "sensors", "subnets"},
    "backends": {"subnets"},
    "sensors": set(),
    "subnets": set(),
}
"""What each folder may import besides itself; a package's name covers its modules, except 'subnets' in SMALL."""

LIGHT = ("policies", "simulation", "sensors", "agent", "cli", "calibration.table")
LIGHT_SUBNETS = ("subnets", "subnets.spec", "subnets.bundle", "subnets.data", "subnets.errors", "subnets.heap")
HEAVY = {"torch", "openvino", "tensorrt", "torchvision"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(name, *, top_level_only=False):
    """Absolute names of the modules that ``name`` imports; a name imported from a package counts as its module."""
    found = set()

    def visit(node):
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name} imports relatively"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    found.add(full if full in FILES else str(child.module))
            elif not (top_level_only and (inside or typing_only)):
                visit(child)

    visit(TREES[name])
    return found


def allowed(package, imported):
    for entry in ALLOWED[package]:
        if entry == "*" or imported == entry:
            return True
        if imported.startswith(f"{entry}.") and not (entry == "subnets" and "subnets.errors" in ALLOWED[package]):
            return True
    return False


def test_every_root_package_has_its_place_in_the_one_direction():
    assert sorted(ALLOWED) == PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    wrong = []
    for name in FILES:
        if name.split(".")[0] == package:
            for imported in imports(name):
                other = imported.split(".")[0]
                if other in PACKAGES and other != package and not allowed(package, imported):
                    wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    # A package's __init__ runs before its modules, but a module that imports a sibling does not depend on it.
    graph = {name: {other for other in imports(name, top_level_only=True) if other in FILES} for name in FILES}
    done, path = set(), []

    def walk(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                walk(other)
            path.pop()
            done.add(name)

    for name in sorted(graph):
        walk(name)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in FILES
        if name in LIGHT or name in LIGHT_SUBNETS or name.split(".")[0] in set(LIGHT) - {"calibration.table"}
    ],
)
def test_light_modules_import_no_heavy_library_at_module_level(name):
    assert not {imported.split(".")[0] for imported in imports(name, top_level_only=True)} & HEAVY


def test_command_files_import_little_before_they_run():
    """What ``gearshift COMMAND --help`` costs: click and the standard library."""
    light = {"click", "cli", *sys.stdlib_module_names}
    for name in FILES:
        if name.split(".")[0] == "cli" and any(
            isinstance(node, ast.FunctionDef) and node.name == "command" for node in TREES[name].body
        ):
            roots = {imported.split(".")[0] for imported in imports(name, top_level_only=True)}
            assert roots <= light, f"{name} imports {sorted(roots - light)} at module level"


def test_the_wheel_holds_every_root_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(project["tool"]["setuptools"]["packages"]) == PACKAGES
    nested = [path for package in PACKAGES for path in (ROOT / package).rglob("*/__init__.py")]
    assert not nested, "setuptools' list names no nested package"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_and_is_listed_once(package):
    module = importlib.import_module(package)
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    assert all(hasattr(module, name) for name in names)
    assert module.__doc__


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle made with numpy alone."""
    from subnets.bundle import SCHEMA, Architecture, InputSpec, Manifest, SubnetEntry, save
    from subnets.spec import ChannelGroup, Member

    manifest = Manifest(
        schema=SCHEMA,
        name="plain",
        architecture=Architecture(name="tinynet"),
        input=InputSpec(channels=1, height=16, width=16, mean=(0.3,), std=(0.3,)),
        labels=("x", "y"),
        groups=(ChannelGroup(name="a", width=4, members=(Member("a.weight", 0), Member("head.weight", 1))),),
        subnets=tuple(
            SubnetEntry(name=f"s{25 * width}", widths={"a": width}, macs=10 * width, parameters=2 * width)
            for width in (1, 4)
        ),
        weights_sha256="",
    )
    tensors = {"a.weight": np.zeros((4, 3), np.float32), "head.weight": np.zeros((2, 4), np.float32)}
    return save(tmp_path_factory.mktemp("plain") / "plain", manifest, tensors, "# plain\n").path


NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Refuse())
import cli

def gearshift(*arguments):
    sys.argv = ["gearshift", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
"""


def without_torch(program, *arguments):
    command = [sys.executable, "-c", NO_TORCH + program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_without_torch_help_and_bundles_work_and_the_agents_folders_import(bundle):
    ran = without_torch(
        "place = sys.argv[1]\n"
        "assert gearshift('--help') == 0\n"
        "assert gearshift('bundle', 'show', place) == 0\n"
        "assert gearshift('bundle', 'verify', place) == 0\n"
        "import agent, backends, calibration, policies, sensors, simulation, subnets\n"
        "from subnets.bundle import Bundle\n"
        "assert Bundle.open(place).tensors('s25')['a.weight'].shape == (1, 3)\n"
        "from subnets.data import load\n"
        "assert len(load('digits').test) == 597\n"
        "assert 'torch' not in sys.modules\n"
        "print('DONE')\n",
        bundle,
    )
    assert ran.returncode == 0 and ran.stdout.endswith("DONE\n"), ran.stderr


def test_without_torch_every_module_outside_training_imports():
    names = [name for name in FILES if name in LIGHT_SUBNETS or name.split(".")[0] not in ("subnets", "backends")]
    ran = without_torch(f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\nprint('DONE')\n")
    assert ran.returncode == 0 and ran.stdout.endswith("DONE\n"), ran.stderr


def test_without_torch_training_says_what_to_install(bundle):
    ran = without_torch(
        "sys.exit(gearshift('train', sys.argv[1], '--data', 'digits', '--no-compile', '--epochs', '1'))", bundle
    )
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert ran.stderr.strip() == "Error: this step needs torch; install it with: pip install 'gearshift[train]'"
