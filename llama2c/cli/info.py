"""`llama2c info`: what a file is and what it will need, before anything is loaded."""

import argparse
import json
import os
import platform
from typing import Any

from llama2c import __version__
from llama2c._core import available_isas, batch_bytes, chosen_isa, is_gguf, read_config, read_gguf, session_bytes
from llama2c.formats.hf import is_hf, read_table
from llama2c.threads import default_threads
from llama2c.tokenizers import candidates
from llama2c.weights import FORMATS, model_paths, open_weights

CHUNK = 256  # prompt rows of a step, the default of Session
SHOWN = 6  # elements of an array in a GGUF file's metadata
WIDTH = 60  # characters of a value there


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "info",
        help="what a file is, the memory it needs, what this machine can do",
        description="Tell what a model file is, the memory it will need, and which instruction sets this machine has.",
    )
    command.add_argument("checkpoint", metavar="CKPT", nargs="?", help=f"{FORMATS}; without it: the machine only")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def gather_machine() -> dict[str, Any]:
    """The build and the machine."""
    return {
        "version": __version__,
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "isas": list(available_isas()),
        "isa": chosen_isa(),
        "threads": default_threads(),
    }


def parameter_count(config: dict[str, Any]) -> int:
    """Weights of a model of that shape."""
    dim, hidden, head_dim = config["dim"], config["hidden_dim"], config["head_dim"]
    layer = 2 * dim * head_dim * (config["n_heads"] + config["n_kv_heads"]) + 3 * dim * hidden + 2 * dim
    return int(config["n_layers"] * layer + dim + config["vocab_size"] * dim * (1 if config["tied"] else 2))


def gather_model(path: str) -> dict[str, Any]:
    """A model: configuration, memory, tensors where the file names them. Raises what open_weights raises."""
    weights = open_weights(path) if is_hf(path) else path
    config = read_config(path) if isinstance(weights, str) else weights.config
    context = config["context"]
    header = read_gguf(path, longest=SHOWN) if is_gguf(path) else {"tensors": tensors_of(path)} if is_hf(path) else {}
    tokenizers = (
        [path]
        if any(item["key"] == "tokenizer.ggml.tokens" for item in header.get("metadata", ()))
        else [str(p) for p in candidates(path, config["vocab_size"]) if p.is_file()]
    )
    return {
        "path": path,
        **config,
        "parameters": parameter_count(config),
        "file_bytes": sum(os.stat(part).st_size for part in model_paths(path)),
        "kv_bytes_full_context": session_bytes(weights, context),
        "kv_bytes_per_1024_positions": session_bytes(weights, 1024),
        "work_bytes": batch_bytes(weights, min(CHUNK, context), default_threads()),
        "tokenizers_found": list(dict.fromkeys(tokenizers)),
        **header,
    }


def tensors_of(path: str) -> list[dict[str, Any]]:
    """The tensors of a Hugging Face directory that the model needs, as read_gguf has them."""
    return [
        {
            "name": entry.name,
            "type": entry.type,
            "shape": list(entry.shape),
            "offset": entry.offset,
            "bytes": entry.bytes,
        }
        for entry in read_table(path).entries
    ]


def print_metadata(header: dict[str, Any]) -> None:
    """The metadata of a GGUF file."""
    print(f"metadata ({len(header['metadata'])} entries)")
    for item in header["metadata"]:
        kind, value = item["type"], item["value"]
        if kind == "ARRAY":
            kind = f"{item['element']}[{item['count']}]"
            value = ", ".join(map(short, value)) + (", ..." if item["count"] > len(value) else "")
        print(f"  {item['key']:<44} {kind:<16} {value if item['type'] == 'ARRAY' else short(value)}")


def print_tensors(tensors: list[dict[str, Any]]) -> None:
    """What the weights are."""
    print(f"tensors ({len(tensors)})")
    width = max([28, *(len(tensor["name"]) for tensor in tensors)])
    for tensor in tensors:
        shape = " x ".join(map(str, tensor["shape"]))
        print(f"  {tensor['name']:<{width}} {tensor['type']:<8} {shape:>16} {size(tensor['bytes']):>12}")


def short(value: object) -> str:
    """A value on one line, not too long."""
    text = " ".join(repr(value).split()) if isinstance(value, str) else str(value)
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    report: dict[str, Any] = {"machine": gather_machine()}
    if arguments.checkpoint is not None:
        report["model"] = gather_model(arguments.checkpoint)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    if arguments.checkpoint is not None:
        m = report["model"]
        print(f"{m['path']}: {m['format']}, {m['parameters']:,} parameters, mostly {m['weight_type']}")
        print(
            f"  dim {m['dim']}, hidden_dim {m['hidden_dim']}, layers {m['n_layers']}, heads {m['n_heads']}",
            end="",
        )
        print(
            f" (key/value {m['n_kv_heads']}, size {m['head_dim']}),"
            f" vocabulary {m['vocab_size']}, context {m['context']}"
        )
        print(f"  classifier {'tied to the embedding' if m['tied'] else 'of its own'}", end="")
        print(f", rope_theta {m['rope_theta']:g}, norm_eps {m['norm_eps']:g}", end="")
        print(f", a window of {m['window']}" if m["window"] else "", end="")
        print(f", int8 groups of {m['group_size']}" if m["group_size"] else "")
        print(f"  tokenizers found: {', '.join(m['tokenizers_found']) or 'none'}")
        print("memory")
        print(f"  weights, mapped from the file      {size(m['file_bytes']):>12}")
        print(f"  keys and values, {m['kv_type']}, full context {size(m['kv_bytes_full_context']):>12}")
        print(f"    per 1024 positions               {size(m['kv_bytes_per_1024_positions']):>12}")
        print(f"  work space, prompts by {CHUNK}         {size(m['work_bytes']):>12}")
        if "metadata" in m:
            print_metadata(m)
        if "tensors" in m:
            print_tensors(m["tensors"])
    machine = report["machine"]
    print(f"llama2c {machine['version']} on {machine['platform']}")
    print(f"  instruction-set levels: {', '.join(machine['isas'])}; chosen: {machine['isa']}")
    print(f"  threads: {machine['threads']}")
    return 0
