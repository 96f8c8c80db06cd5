"""Who may import whom, and where imports stand: the map of the code for newcomers, and the fence around it."""

import ast
from pathlib import Path

import pytest

import toolcrib

ROOT = Path(toolcrib.__file__).parent

# A layer may import itself and what is listed. The longest matching name counts.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "settings": {"core"},  # the address policy's grammar; otherwise only the environment
    "queue": {"core", "errors"},
    "domain": {"queue", "core", "errors"},
    "capability": {"core", "errors"},  # no database, no product: usable on its own
    "gateway": {"domain", "capability", "queue", "core", "errors"},
    "gateway.mcp_client": {"core", "errors"},
    "gateway.providers": {"domain", "capability", "core", "errors"},
    "api": {"gateway", "gateway.providers", "domain", "core", "errors"},  # what dialects share
    "api.root": {"api", "api.orkosi", "queue", "core", "errors"},  # speaks Orkosi's errors, counts jobs
    "api.cadenya": {"api", "gateway", "domain", "core", "errors"},
    "api.orkosi": {"api", "gateway", "domain", "core", "errors"},
    "api.mcp": {"api", "gateway", "gateway.mcp_client", "domain", "core", "errors"},
    "installation": {"domain", "core", "errors", "settings"},
    "wiring": {
        "api",
        "api.cadenya",
        "api.orkosi",
        "api.mcp",
        "api.root",
        "gateway",
        "gateway.mcp_client",
        "gateway.providers",
    }
    | {"queue", "domain", "core", "settings", "errors"},
    "cli": {"*"},
    "__main__": {"cli"},
}
SHARED_INSIDE = {"gateway": {"gateway.mcp_client", "gateway.providers"}}
VERSION = "toolcrib"  # `from toolcrib import __version__` is open to all


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path
    return found


def layer_of(module: str) -> str | None:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in ALLOWED:
            return ".".join(parts[:length])
    return None


def imports_of(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolcrib."):
            module = (node.module or "").removeprefix("toolcrib.")
            found += [
                (node.lineno, f"{module}.{a.name}" if f"{module}.{a.name}" in MODULES else module) for a in node.names
            ]
        elif isinstance(node, ast.Import):
            found += [
                (node.lineno, a.name.removeprefix("toolcrib.")) for a in node.names if a.name.startswith("toolcrib.")
            ]
    return found


MODULES = modules()


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m not in {"", "__init__"}))
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    layer = layer_of(module)
    assert layer, f"{module} belongs to no layer: add it to ALLOWED"
    allowed = ALLOWED[layer] | {layer} | SHARED_INSIDE.get(layer, set())
    for line, target in imports_of(MODULES[module]):
        if "*" not in allowed:
            assert layer_of(target) in allowed, f"{module}:{line} imports {target}"


def test_dialects_never_meet() -> None:
    dialects = {path.name for path in (ROOT / "api").iterdir() if path.is_dir() and path.name != "__pycache__"}
    for module, path in MODULES.items():
        own = module.split(".")[1] if module.startswith("api.") else None
        for line, target in imports_of(path):
            other = target.split(".")[1] if target.startswith("api.") and target.count(".") else None
            if own in dialects and other in dialects:
                assert own == other, f"{module}:{line} imports {target}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_stand_at_the_top(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [n.lineno for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{module}:{inner} imports inside {node.name}"


def test_settings_alone_read_our_environment_variables() -> None:
    for module, path in MODULES.items():
        if module == "settings" or module.startswith("cli."):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"getenv", "environb"}:
                pytest.fail(f"{module}:{node.lineno} reads the environment")
