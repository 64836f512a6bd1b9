"""Hugging Face's Llama as the reference: random models, their weights by GGUF's names, logits and greedy tokens.

    python tests/hf_llama.py SHAPES.json OUT

A program of its own, so that torch and its threads stay out of the process of the tests. SHAPES.json lists arguments
of LlamaConfig; OUT/<number>.npz gets for each the tensors, `logits` (f32 [prompt, vocab], of the prompt alone),
`tokens` (the prompt, then greedy ones), `margin` (least distance of the two best logits at a greedy token) and `seed`;
OUT/<number>/ the model as save_pretrained writes it.
"""

import json
import sys
from pathlib import Path

import numpy as np

PROMPT, TOKENS = 40, 256
MARGIN = 1e-5  # nearer than this, rounding decides between two tokens: another seed is taken
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def adjacent(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a head with each rotated pair side by side; here a pair is (i, i + head_dim / 2)."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def tensors_of(model, config) -> dict[str, np.ndarray]:
    """The weights under GGUF's names."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors = {"token_embd": state["model.embed_tokens.weight"], "output_norm": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        tensors["output"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            tensors[f"blk.{layer}.{ours}"] = state[f"model.layers.{layer}.{theirs}.weight"]
        for name, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            tensors[f"blk.{layer}.{name}"] = adjacent(tensors[f"blk.{layer}.{name}"], heads)
    return tensors


def reference(arguments: dict, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """A random model in float32, which is saved, and what it says."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **arguments, attn_implementation="eager", bos_token_id=None, eos_token_id=None, dtype=torch.float32
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            values = torch.randn(weight.shape, generator=generator)
            # of a size that keeps activations and differences of logits near 1
            weight.copy_(1 + 0.3 * values if weight.ndim == 1 else values * 1.5 / weight.shape[-1] ** 0.5)
        tokens = torch.randint(0, config.vocab_size, (1, PROMPT), generator=generator)
        logits = model(tokens).logits[0]
        margin, cache = np.inf, None
        for _ in range(TOKENS):
            step = model(tokens if cache is None else tokens[:, -1:], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            best = step.logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            tokens = torch.cat([tokens, best.indices[None, :1]], dim=1)
    assert logits.dtype == torch.float32
    model.save_pretrained(folder)
    return {
        **tensors_of(model, config),
        "logits": logits.numpy(),
        "tokens": tokens[0].numpy(),
        "margin": np.array(margin),
        "seed": np.array(seed),
    }


def main() -> None:
    shapes, out = Path(sys.argv[1]), Path(sys.argv[2])
    for number, arguments in enumerate(json.loads(shapes.read_text())):
        seed = 1
        while (found := reference(arguments, seed, out / str(number)))["margin"] < MARGIN:
            seed += 1
        np.savez(out / f"{number}.npz", **found)


if __name__ == "__main__":
    main()
