"""The readers of GGUF under libFuzzer, ASan and UBSan: a hundred thousand mutations of small files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ggufs
import pytest
from oracle import Shape

ROOT = Path(__file__).resolve().parent.parent
RUNS = int(os.environ.get("LLAMA2C_FUZZ_RUNS", "100000"))
SHAPE = Shape(32, 32, 1, 2, 1, 8, 16)
METADATA = {
    "general.alignment": 8,
    "split.count": 1,
    "llama.attention.key_length": 16,
    "llama.rope.scaling.type": "linear",
    "llama.rope.scaling.factor": 2.0,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "\u2581", "ab", "<0x41>"],
    "tokenizer.ggml.scores": [0.0] * 8,
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 4, 6],
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_space_prefix": False,
}
BPE = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": ["a", "b", "\u0120", "ab", "\u0120ab", "<|begin|>", "<|end|>", "\u010a"],
    "tokenizer.ggml.merges": ["a b", "\u0120 ab"],
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 3, 3, 1],
    "tokenizer.ggml.bos_token_id": 5,
    "tokenizer.ggml.eos_token_id": 6,
    "tokenizer.ggml.add_bos_token": True,
}


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    clang = next((name for name in ("clang", "clang-14") if shutil.which(name)), None)
    if clang is None:
        if os.environ.get("CI", "").lower() not in ("", "0", "false") and sys.platform == "linux":
            pytest.fail("no clang: install clang and its runtime, e.g. Debian's clang and libclang-rt-dev")
        pytest.skip("no clang")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz_gguf"
    build = [sys.executable, ROOT / "csrc" / "build.py", "--cc", clang, "--sanitize", "--no-openmp"]
    only = ["--no-kernels", "--main", ROOT / "tests" / "c" / "fuzz_gguf.c", "--out", program]
    subprocess.run([*build, *only, "--", "-fsanitize=fuzzer"], check=True)
    return program


@pytest.mark.slow
def test_no_file_crashes_the_readers(fuzzer, tmp_path, rng):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("F32", "Q8_0", "Q4_0", "F16"):
        ggufs.write(corpus / name, SHAPE, ggufs.random_tensors(rng, SHAPE, name), metadata=METADATA)
    ggufs.write(corpus / "BPE", SHAPE, ggufs.random_tensors(rng, SHAPE, "Q8_0"), metadata=BPE)
    # no limit on resident memory: the kernel counts that of this process, before the exec, to the fuzzer's peak
    limits = ["-max_len=16384", "-malloc_limit_mb=65", "-rss_limit_mb=0", "-timeout=10"]
    command = [fuzzer, corpus, f"-runs={RUNS}", f"-seed={rng.seed}", f"-artifact_prefix={tmp_path}/", *limits]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS}" in done.stderr
