"""Prompt rows by AMX's tiles: kernels_amx.c over an emulation of its instructions, where AVX-512 VNNI runs, and over
the instructions where the processor has them.

Machines that have AMX list the level, and the other tests take it like any other.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import ggufs
import numpy as np
import pytest
from conftest import objects
from oracle import nmse

import llama2c
from llama2c import Session, Transformer

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("checktiles", "logits")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "avx512vnni" not in llama2c.available_isas() or sys.platform != "linux" or not shutil.which("cc"),
        reason="needs a processor with AVX-512 VNNI, Linux and a C compiler",
    ),
]


def build(folder: Path, *options: str) -> Path:
    command = [sys.executable, str(ROOT / "csrc" / "build.py")]
    for name in PROGRAMS:
        command += ["--main", str(ROOT / "tests" / "c" / f"{name}.c"), "--out", str(folder / name)]
    subprocess.run([*command, *options], check=True)
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over a core whose tiles are emulated."""
    return build(tmp_path_factory.mktemp("emulated"), "--levels", "amx", "--emulate", "amx")


def logits(programs: Path, path: Path, tokens: np.ndarray, *, threads: int = 1, chunk: int = 64) -> np.ndarray:
    """Of the tokens as prompt rows, and as generated rows: [2, tokens, vocabulary]."""
    command = [programs / "logits", path, "amx", str(threads), str(chunk)]
    done = subprocess.run(command, input=tokens.astype(np.int32).tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32).reshape(2, len(tokens), -1)


def test_products(programs, rng):
    """Every type and awkward size against double; rows and columns alone; tiles released."""
    done = subprocess.run([programs / "checktiles", str(rng.seed + 1)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failures" in done.stdout


@pytest.mark.skipif(
    # the package under test may itself be one whose level amx is emulated
    not ("amx" in llama2c.available_isas() and "amx_bf16" in Path("/proc/cpuinfo").read_text()),
    reason="needs a processor with AMX",
)
def test_processors_equal_the_emulation(programs, tmp_path, data_file, rng):
    """To rounding: the manual does not bind a processor to the order of its sums."""
    own = build(tmp_path, *(objects("LLAMA2C_OBJECTS") or ("--levels", "amx")))
    done = subprocess.run([own / "checktiles", str(rng.seed + 1)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "amx F16" in done.stdout
    tokens = rng.integers(0, 512, 50)
    for kind in ("BF16", "F16", "Q4_K_M"):
        path = data_file(f"golden/gqa256-{kind}.gguf")
        expected, got = logits(programs, path, tokens), logits(own, path, tokens)
        assert np.array_equal(got[1], expected[1])
        assert nmse(got[0], expected[0].astype(np.float64)) <= 1e-7


@pytest.mark.parametrize("name", ggufs.GOLDEN)
def test_error_is_a_quarter_of_llama_cpps(programs, data_file, name):
    family, _, kind = name.partition("-")
    stored = np.load(data_file(f"golden/{family}-logits.npz"))
    exact = stored[f"f64_{kind}"]
    prompt, _ = logits(programs, data_file(f"golden/{name}.gguf"), stored["tokens"])
    assert nmse(prompt, exact) <= ggufs.tiles_bound(kind, nmse(stored[f"lcpp_{kind}"], exact))


@pytest.mark.parametrize("name", [f"gqa256-{kind}" for kind in ("f32", "F16", "Q4_K_M", "Q4_0", "IQ3_S")])
def test_bits_do_not_depend_on_threads_or_the_cut(programs, data_file, rng, name):
    path = data_file(f"golden/{name}.gguf")
    tokens = rng.integers(0, 512, 50)
    first = logits(programs, path, tokens, chunk=50)
    for threads, chunk in ((3, 50), (1, 1), (2, 7), (1, 33)):
        assert np.array_equal(logits(programs, path, tokens, threads=threads, chunk=chunk), first), (threads, chunk)


@pytest.mark.parametrize("name", ["golden/gqa256-f32.gguf", "golden/gqa256-Q4_K_M.gguf", "models/llama2xs_v2.bin"])
def test_generated_rows_are_those_of_every_level(programs, data_file, rng, name):
    """Beside prompt rows by tiles; llama2.c's int8 groups are in both roles."""
    tokens = rng.integers(0, 512, 40)
    prompt, generated = logits(programs, data_file(name), tokens, chunk=20)
    session = Session(Transformer(data_file(name), isa="avx512vnni"))
    assert np.array_equal(generated, np.stack([session.step(token) for token in tokens.tolist()]))
    assert np.array_equal(prompt, generated) == name.endswith("_v2.bin")
