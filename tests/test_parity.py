"""The same as Hugging Face's Llama in float32: logits to rounding, and 256 greedy tokens, for random models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import checkpoints
import ggufs
import numpy as np
import pytest
from conftest import require_modules
from hf_llama import MARGIN, PROMPT, TOKENS
from hf_models import stretch
from oracle import Shape, nmse

from llama2c import Session, Transformer
from llama2c.weights import open_weights

HERE = Path(__file__).resolve().parent
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Grouped queries; sizes that are no multiples of anything; long waves stretched as in Llama 3.1.
SHAPES = {
    "gqa": (Shape(128, 352, 3, 8, 2, 512, 320, tied=False), {"rope_type": "default", "rope_theta": 10000.0}),
    "odd": (Shape(90, 201, 2, 5, 1, 301, 320), {"rope_type": "default", "rope_theta": 500000.0}),
    "llama3": (Shape(192, 512, 4, 6, 6, 1000, 320, tied=False), LLAMA3_ROPE),
}
FILES = [("gqa", "v0"), ("gqa", "gguf"), ("odd", "v0"), ("odd", "gguf"), ("llama3", "gguf")]
FILES += [(name, "hf") for name in SHAPES]  # what transformers itself saved


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """What Hugging Face's models are and say, by shape.

    Without torch and transformers (the extra `parity`) a failure in CI, unless LLAMA2C_PARITY_OPTIONAL=1, and a skip
    elsewhere.
    """
    require_modules("torch", "transformers", extra="parity")
    out = tmp_path_factory.mktemp("hf")
    arguments = [
        {
            "hidden_size": s.dim,
            "intermediate_size": s.hidden_dim,
            "num_hidden_layers": s.n_layers,
            "num_attention_heads": s.n_heads,
            "num_key_value_heads": s.n_kv_heads,
            "vocab_size": s.vocab_size,
            "max_position_embeddings": s.context,
            "rms_norm_eps": s.norm_eps,
            "tie_word_embeddings": s.tied,
            "rope_parameters": rope,
        }
        for s, rope in SHAPES.values()
    ]
    (out / "shapes.json").write_text(json.dumps(arguments))
    done = subprocess.run(
        [sys.executable, str(HERE / "hf_llama.py"), str(out / "shapes.json"), str(out)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},  # the matrices are small
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        name: {**np.load(out / f"{number}.npz"), "folder": np.array(str(out / str(number)))}
        for number, name in enumerate(SHAPES)
    }


def transformer(folder: Path, name: str, kind: str, found: dict[str, np.ndarray]) -> Transformer:
    """The reference's weights in a file of ours, or as they were saved."""
    if kind == "hf":
        return open_weights(str(found["folder"]))
    shape, rope = SHAPES[name]
    theta = float(rope["rope_theta"])
    path = folder / f"model.{kind}"
    weights = {key: found[key] for key in checkpoints.tensor_shapes(shape)}
    if kind == "v0":
        checkpoints.write(path, shape, weights, version=0)
        return Transformer(str(path), rope_theta=theta)  # which these files do not have
    tensors = {f"{key}.weight": ("F32", value) for key, value in weights.items()}
    if rope["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = ("F32", stretch(rope, shape.head_dim))
    ggufs.write(path, shape, tensors, metadata={"llama.rope.freq_base": theta})
    return Transformer(str(path))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), FILES)
def test_logits(tmp_path, references, name, kind):
    """The reference is float32, too: the bound is for the rounding of both."""
    found = references[name]
    model, tokens = transformer(tmp_path, name, kind, found), found["tokens"][:PROMPT].tolist()
    assert nmse(Session(model).prefill_all(tokens), found["logits"].astype(np.float64)) <= 1e-9
    session = Session(model)
    generated = np.stack([session.step(token) for token in tokens])
    assert nmse(generated, found["logits"].astype(np.float64)) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), FILES)
def test_greedy_tokens(tmp_path, references, name, kind):
    found = references[name]
    assert found["margin"] >= MARGIN  # else the two best are a matter of rounding
    expected = found["tokens"].tolist()
    assert len(expected) == PROMPT + TOKENS
    session = Session(transformer(tmp_path, name, kind, found), threads=2)
    got, logits = [], session.prefill(expected[:PROMPT])
    for _ in range(TOKENS):
        got.append(int(logits.argmax()))
        logits = session.step(got[-1])
    assert got == expected[PROMPT:]
    assert len(set(got)) > 20  # a loop of a few tokens would show nothing
