"""The directions of the house, read from its imports: every arrow points down, and none in a circle."""

import ast
import pathlib
import subprocess
import sys

import pytest

import jaxdp

PACKAGE = pathlib.Path(jaxdp.__file__).parent
LABORATORY = ("jaxdp.laboratory", "jaxdp.commands")
# What each part may import of jaxdp, beside itself and what everyone needs.
EVERYONE = {"jaxdp._validate", "jaxdp.platforms"}
ALLOWED = {
    "jaxdp.accounting": set(),
    "jaxdp.auditing": {"jaxdp.accounting", "jaxdp.intervals"},
    "jaxdp.atomic": set(),
    "jaxdp.intervals": set(),
    "jaxdp.noise": set(),
    "jaxdp.schedules": set(),
    "jaxdp.gradients": set(),
    "jaxdp.clipping": {"jaxdp.gradients", "jaxdp.schedules", "jaxdp.noise"},
    "jaxdp.sampling": {"jaxdp.accounting", "jaxdp.noise"},
    "jaxdp.data": {"jaxdp.atomic"},
    "jaxdp.models": {"jaxdp.gradients"},
}


def module(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: pathlib.Path, top: bool) -> set[str]:
    """The modules of jaxdp that a file imports; at its top level alone, or anywhere."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxdp":
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                found.add(whole if whole in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "jaxdp"}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_library_never_imports_the_laboratory():
    for name, path in MODULES.items():
        if not any(within(name, part) for part in LABORATORY):
            bad = [m for m in imports(path, top=False) if any(within(m, part) for part in LABORATORY)]
            assert not bad, f"{name} imports {bad}"


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_what_is_below_it(part):
    allowed = ALLOWED[part] | EVERYONE
    for name, path in MODULES.items():
        if within(name, part):
            for found in imports(path, top=False):
                assert within(found, part) or any(within(found, a) for a in allowed), (
                    f"{name} imports {found}"
                )


def test_no_circle():
    """Modules in an order in which each comes after what it imports at its top level."""
    below = {name: imports(path, top=True) - {name, "jaxdp"} for name, path in MODULES.items()}
    # A package's face is made of its modules: they import each other, not it.
    below = {name: {m for m in found if not name.startswith(f"{m}.")} for name, found in below.items()}
    placed: set[str] = set()
    while len(placed) < len(below):
        free = {name for name, found in below.items() if name not in placed and found <= placed}
        assert free, f"a circle among {sorted(set(below) - placed)}"
        placed |= free


def test_no_function_shadows_a_module():
    for name, path in MODULES.items():
        if path.name != "__init__.py":
            continue
        inside = {m.removeprefix(f"{name}.") for m in MODULES if m.startswith(f"{name}.")}
        tree = ast.parse(path.read_text())
        bound = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                names = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
                bound |= {local for local, whole in names.items() if whole not in MODULES}
        assert not bound & inside, f"{name}: {bound & inside}"


@pytest.mark.parametrize("path", MODULES.values(), ids=list(MODULES))
def test_files_and_functions_can_be_seen_at_once(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 320, f"{len(lines)} lines"
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef):
            body = node.body
            if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and len(body) > 1:
                body = body[1:]
            covered = range(body[0].lineno - 1, node.end_lineno or 0)
            code = [i for i in covered if lines[i].strip() and not lines[i].strip().startswith("#")]
            assert len(code) <= 60, f"{node.name}: {len(code)} lines of code"


def test_importing_the_library_loads_no_part_of_the_laboratory():
    heavy = ("matplotlib", "pandas", "tyro", "tensorflow_datasets", "orbax", "jaxdp.laboratory")
    program = f"import sys, jaxdp; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
