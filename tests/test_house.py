"""House rules that no linter knows: what may be imported where, and what must never be committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src" / "tunery").rglob("*.py"))
ENGINE_ONLY = ("vllm", "ray.llm", "ray.serve.llm", "ray.data.llm")
HEAVY = ("torch", "ray", "vllm", "transformers", "peft", "pandas", "matplotlib")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module `path` imports, at its top or inside functions, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def tracked() -> list[Path]:
    """The files git would commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_only_the_engine_names_vllm_and_rays_llm_parts():
    found = {
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in SOURCES
        if "engine" not in path.relative_to(ROOT / "src" / "tunery").parts
        for line, module in imports(path)
        if within(module, ENGINE_ONLY)
    }
    assert not found


@pytest.mark.parametrize("module", ["tunery", "tunery.cli", "tunery.config", "tunery.ops", "tunery.doctor"])
def test_importing_starts_nothing_heavy(module):
    code = f"import sys, {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_committed_files_name_no_package_registry_and_no_machine():
    # Spelled in pieces, so that this file passes its own test.
    registries = (
        "pypi" + r"\.org",
        "python" + r"hosted\.org",
        "download" + r"\.pytorch\.org",
        "registry" + r"\.npmjs\.org",
    )
    homes = (
        "/ro" + "ot/",
        "/home" + r"/[a-z]+/",
        "/Us" + r"ers/[A-Za-z]+/",
        "/wo" + r"rk/",
        "/opt" + "/(wheels|pypi)",
    )
    forbidden = re.compile("|".join((*registries, *(rf"(?<![\w.$~}}]){home}" for home in homes))))
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # weights and pictures
        for match in forbidden.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {match.group()}")
    assert not found


def test_modules_are_named_for_what_they_do():
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [path for path in SOURCES if path.stem in vague]


def test_modules_stay_readable():
    """500 lines is the budget; this is where it ends."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {path: lines for path, lines in lengths.items() if lines > 600}


def test_locks_carry_hashes_for_every_package():
    for lock in sorted((ROOT / "requirements").glob("*.txt")):
        entries = re.split(r"\n(?=\S)", lock.read_text().strip())
        bare = [entry for entry in entries if not entry.startswith("#") and "--hash=sha256:" not in entry]
        assert not bare, lock.name
