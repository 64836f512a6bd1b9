"""Every kernel at every level gives the scalar kernel's bits: tests/c/checkkernels.c, here and on an emulated AArch64.
What threads share is taken once: tests/c/checkteam.c.

The same emulator runs a whole story: greedy.c, against llama2.c's own text.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import is_set, objects

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "csrc" / "build.py"
AARCH64 = ("aarch64-linux-gnu-gcc", "qemu-aarch64")


def build(folder: Path, *options: str, programs: tuple[str, ...] = ("checkkernels",)) -> list[Path]:
    command = [sys.executable, str(BUILD)]
    for name in programs:
        command += ["--main", str(ROOT / "tests" / "c" / f"{name}.c"), "--out", str(folder / name)]
    subprocess.run([*command, *options], check=True)
    return [folder / name for name in programs]


def output(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


def need(*tools: str) -> None:
    """Without these programs a failure in CI on Linux, unless LLAMA2C_TOOLS_OPTIONAL=1, and a skip elsewhere."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        if sys.platform == "linux" and is_set("CI") and not is_set("LLAMA2C_TOOLS_OPTIONAL"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="build.py drives compilers with the flags of gcc")
def test_levels_agree(tmp_path, rng):
    need("cc")
    (checker,) = build(tmp_path, *objects("LLAMA2C_OBJECTS"))
    lines = output(checker, str(rng.seed + 1)).splitlines()
    assert lines and all("same bits" in line for line in lines)


@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path, rng):
    need("cc")
    if sys.platform != "linux":
        pytest.skip("the sanitizers' flags are those of Linux")
    (checker,) = build(tmp_path, "--sanitize", *objects("LLAMA2C_SANITIZED_OBJECTS"))
    lines = output(checker, str(rng.seed + 1)).splitlines()
    assert lines and all("same bits" in line for line in lines)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="build.py drives compilers with the flags of gcc")
def test_work_is_shared_out(tmp_path, rng):
    need("cc")
    (checker,) = build(tmp_path, "--levels", "scalar", "--", "-O1", programs=("checkteam",))
    lines = output(checker, str(rng.seed + 1)).splitlines()
    assert [line.split(" threads: ") for line in lines] == [[str(n), "0 wrong, 0 left"] for n in range(1, 10)]


@pytest.mark.slow
def test_aarch64(tmp_path, data, rng):
    need(*AARCH64)
    cross = ("--cc", AARCH64[0], "--strict", "--", "-static")
    checker, story = build(tmp_path, *cross, programs=("checkkernels", "greedy"))
    lines = output(AARCH64[1], checker, str(rng.seed + 1)).splitlines()
    assert [line.split(":")[0] for line in lines] == ["scalar", "neon", "dotprod"]
    assert all("same bits" in line for line in lines)
    files = (data / "models" / "stories260K.bin", data / "models" / "tok512.bin")
    expected = (data / "expected" / "stories260K_greedy.txt").read_text()
    for level in ("neon", "dotprod"):
        assert output(AARCH64[1], story, *files, "256", level) == expected
