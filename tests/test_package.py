"""The package as a user gets it: versions, help, the wheel, imports, running in a checkout."""

import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import llama2c
from llama2c import _core

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(_core.__file__).parent


def python(*arguments: str, cwd: Path | None = None) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


def copy_of_source(folder: Path) -> None:
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(ROOT / "llama2c", folder / "llama2c", ignore=ignore)


def test_versions_agree() -> None:
    header = (ROOT / "csrc" / "llama2c.h").read_text(encoding="utf-8")
    in_header = re.search(r'#define L2C_VERSION "(.*)"', header)
    assert in_header is not None
    assert llama2c.__version__ == in_header[1] == importlib.metadata.version("llama2c")


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_core.pyi").is_file()


def test_public_names_have_help() -> None:
    public = {name: getattr(llama2c, name) for name in llama2c.__all__}
    for name, value in list(public.items()):
        if inspect.isclass(value):
            members = ((key, getattr(value, key)) for key in vars(value) if not key.startswith("_"))
            public |= {f"{name}.{key}": member for key, member in members}
    callables = {name: value for name, value in public.items() if callable(value)}
    assert callables
    assert not [name for name, value in callables.items() if not inspect.getdoc(value)]


def test_import_takes_no_more_than_it_needs(tmp_path: Path) -> None:
    loaded = python(
        "-c",
        "import sys, numpy; before = set(sys.modules); import llama2c;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})",
        cwd=tmp_path,
    )
    heavy = {"sentencepiece", "torch", "transformers", "argparse", "asyncio", "http", "hashlib"}
    assert not heavy & set(loaded.split())


@pytest.mark.skipif(PACKAGE == ROOT / "llama2c", reason="the package is the checkout's: pip install -e")
def test_checkout_gives_way_to_the_installed_package(tmp_path: Path) -> None:
    """So that `pip install . && python -m llama2c` works in a clone."""
    copy_of_source(tmp_path)
    found = python(
        "-c",
        "import llama2c, importlib.util as util; print(llama2c.__file__);"
        "[print(util.find_spec(f'llama2c.{name}').origin) for name in ('_core', '__main__')]",
        cwd=tmp_path,
    )
    first, *others = (Path(line).parent for line in found.splitlines())
    assert first == tmp_path / "llama2c"
    assert others == [PACKAGE, PACKAGE]


def test_checkout_alone_says_what_to_do(tmp_path: Path) -> None:
    copy_of_source(tmp_path)
    command = [sys.executable, "-S", "-c", "import llama2c"]  # -S: without site-packages
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "run `pip install .`" in result.stderr.splitlines()[-1]


@pytest.mark.skipif("LLAMA2C_WHEEL" not in os.environ, reason="LLAMA2C_WHEEL names no wheel to look into")
def test_wheel_holds_the_package_and_nothing_else() -> None:
    wheel = Path(os.environ["LLAMA2C_WHEEL"])
    assert "-cp311-abi3-" in wheel.name
    assert wheel.stat().st_size <= 6_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {Path(name).parts[0] for name in names} == {
        "llama2c",
        f"llama2c-{llama2c.__version__}.dist-info",
    }
    assert not [name for name in names if Path(name).suffix in {".c", ".h", ".pyx", ".pxd", ".pxi"}]
    assert {"llama2c/data/shakespeare.gguf", "llama2c/data/shakespeare.md"} <= set(names)
    assert sum(name.startswith("llama2c/_core.") for name in names) == 2  # the module and its stub
