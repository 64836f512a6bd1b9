"""One engine with one model open, for compare_peers.py: answers requests on the standard input, a JSON object a line.

    PYTHON peer_worker.py ENGINE '{"model": ..., "shape": {...}, "threads": 2, "type": null}'

The first answer tells the engine's version and weights. {"test": "prefill", "tokens": N, "depth": 0, "batch": 1} takes
a prompt of N tokens, "decode" takes N single tokens for each of `batch` sequences after `depth` others; the answer has
the seconds, or an error. Needs nothing but the engine: llama2c is imported for its own side alone.
"""

import contextlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from typing import Any
from xml.etree import ElementTree

import numpy as np

PREFILL_DEPTH = 256  # tokens at once on the way to a depth, which is not timed


def ids(count: int, shape: dict[str, Any], seed: int = 1) -> list[int]:
    """Random tokens, the same for every engine; none of the first three, which are special in most vocabularies."""
    return [int(i) for i in np.random.default_rng(seed).integers(3, shape["vocab_size"], count)]


class Engine(ABC):
    """A model that is open."""

    shape: dict[str, Any]  # what llama2c's read_config tells of the model
    weights: str  # what it computes with

    @abstractmethod
    def prefill(self, tokens: int) -> float:
        """Seconds for a prompt of so many tokens, to the logits of the last."""

    @abstractmethod
    def decode(self, tokens: int, depth: int, batch: int) -> float:
        """Seconds for `tokens` steps of `batch` sequences with `depth` positions taken."""


class Llama2c(Engine):
    """Our side."""

    def __init__(
        self, model: str, shape: dict[str, Any], threads: int, type: str | None, throughput: bool = False
    ) -> None:
        import llama2c

        self.core, self.shape, self.threads, self.throughput = llama2c, shape, threads, throughput
        self.transformer = llama2c.Transformer(model)
        self.weights = f"{self.transformer.config['weight_type']}, {self.transformer.isa}"
        if throughput:
            self.weights += ", throughput"
        self.at: tuple[int, int, int] = (0, 0, 0)  # depth, batch and room of the sessions
        self.sessions: list[Any] = []
        self.space: Any = None
        self.prompted: Any = None  # the session of prompts, with memory that was touched, as llama.cpp's context has

    def prefill(self, tokens: int) -> float:
        prompt = ids(tokens, self.shape)
        if self.prompted is None or self.prompted.context != tokens:
            self.prompted = self.core.Session(self.transformer, context=tokens, threads=self.threads)
        self.prompted.rewind(0)
        work = self.work(tokens) if self.throughput else None
        start = time.perf_counter()
        if work is None:
            self.prompted.prefill(prompt)
        else:
            work.step([(self.prompted, prompt, self.core.ROLE_PROMPT, False)])
        return time.perf_counter() - start

    def work(self, rows: int) -> Any:
        """Work space for steps of so many rows, kept for the next time."""
        if self.space is None or self.space.rows != rows:
            self.space = self.core.Batch(self.transformer, rows=rows, threads=self.threads, throughput=self.throughput)
        return self.space

    def decode(self, tokens: int, depth: int, batch: int) -> float:
        if self.at != (depth, batch, tokens):
            self.sessions = []
            for _ in range(batch):
                session = self.core.Session(self.transformer, context=depth + tokens, threads=self.threads)
                if depth:
                    session.prefill(ids(depth, self.shape))
                self.sessions.append(session)
            self.at = (depth, batch, tokens)
        row, sequence = self.core.ROLE_GENERATED, ids(tokens, self.shape, 2)
        work = self.work(batch) if batch > 1 else None
        start = time.perf_counter()
        for token in sequence:
            if work is None:
                self.sessions[0].step(token)
            else:
                work.step([(session, [token], row, True) for session in self.sessions])
        seconds = time.perf_counter() - start
        for session in self.sessions:
            session.rewind(depth)
        return seconds


class LlamaCpp(Engine):
    """llama.cpp by the functions that llama-cpp-python passes through: its own loop would copy all logits."""

    def __init__(self, model: str, shape: dict[str, Any], threads: int, type: str | None) -> None:
        import llama_cpp

        if type is not None:
            raise ValueError("its weights are the file's: it takes no type")
        self.lib, self.shape, self.threads = llama_cpp, shape, threads
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not open {model}")
        self.weights = str(shape["weight_type"])
        self.context: Any = None
        self.at: tuple[int, ...] = ()

    def _open(self, positions: int, batch: int, longest: int) -> None:
        lib = self.lib
        if self.context is not None:
            lib.llama_free(self.context)
        options = lib.llama_context_default_params()
        options.n_ctx = batch * -(-positions // 256) * 256  # cut evenly between the sequences
        options.n_seq_max = batch
        options.n_batch = max(options.n_batch, longest)
        options.n_threads = options.n_threads_batch = self.threads
        self.context = lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")

    def _batch(self, tokens: list[int], position: int, sequences: range) -> Any:
        """The tokens for each of the sequences; logits of the last ones."""
        batch = self.lib.llama_batch_init(len(tokens) * len(sequences), 0, 1)
        batch.n_tokens = len(tokens) * len(sequences)
        for s, sequence in enumerate(sequences):
            for i, token in enumerate(tokens):
                at = s * len(tokens) + i
                batch.token[at], batch.pos[at] = token, position + i
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = i + 1 == len(tokens)
        return batch

    def _take(self, batch: Any) -> None:
        code = self.lib.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")
        self.lib.llama_synchronize(self.context)

    def _timed(self, batches: list[Any]) -> float:
        start = time.perf_counter()
        for batch in batches:
            self._take(batch)
        seconds = time.perf_counter() - start
        for batch in batches:
            self.lib.llama_batch_free(batch)
        return seconds

    def prefill(self, tokens: int) -> float:
        if self.at != (tokens,):
            self._open(tokens, 1, tokens)
            self.at = (tokens,)
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        return self._timed([self._batch(ids(tokens, self.shape), 0, range(1))])

    def decode(self, tokens: int, depth: int, batch: int) -> float:
        if self.at != (depth, batch, tokens):
            self._open(depth + tokens, batch, PREFILL_DEPTH)
            prompt = ids(depth, self.shape)
            for sequence in range(batch):
                for start in range(0, depth, PREFILL_DEPTH):
                    part = prompt[start : start + PREFILL_DEPTH]
                    self._timed([self._batch(part, start, range(sequence, sequence + 1))])
            self.at = (depth, batch, tokens)
        steps = enumerate(ids(tokens, self.shape, 2))
        seconds = self._timed([self._batch([token], depth + i, range(batch)) for i, token in steps])
        memory = self.lib.llama_get_memory(self.context)
        for sequence in range(batch):
            self.lib.llama_memory_seq_rm(memory, sequence, depth, -1)
        return seconds


def hf_model(shape: dict[str, Any], type: str) -> Any:
    """A random LlamaForCausalLM of the shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape["dim"],
        intermediate_size=shape["hidden_dim"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        head_dim=shape["head_dim"],
        vocab_size=shape["vocab_size"],
        max_position_embeddings=max(shape["context"], 8192),
        rms_norm_eps=shape["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
        tie_word_embeddings=shape["tied"],
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, type))
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


class Transformers(Engine):
    """Hugging Face's model and its cache, without generate(), whose checks cost a small model much."""

    def __init__(self, model: str, shape: dict[str, Any], threads: int, type: str | None) -> None:
        import torch
        from transformers import DynamicCache

        torch.set_num_threads(threads)
        self.torch, self.new_cache, self.shape = torch, DynamicCache, shape
        self.weights = type or "bfloat16"
        self.model = hf_model(shape, self.weights)
        self.at: tuple[int, int] | None = None
        self.cache: Any = None

    def _take(self, tokens: list[int], batch: int, cache: Any) -> None:
        with self.torch.inference_mode():
            rows = self.torch.tensor([tokens] * batch)
            self.model(rows, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def prefill(self, tokens: int) -> float:
        prompt = ids(tokens, self.shape)
        start = time.perf_counter()
        self._take(prompt, 1, self.new_cache())
        return time.perf_counter() - start

    def decode(self, tokens: int, depth: int, batch: int) -> float:
        if self.at != (depth, batch):
            self.cache = self.new_cache()
            prompt = ids(depth, self.shape)
            for at in range(0, depth, PREFILL_DEPTH):
                self._take(prompt[at : at + PREFILL_DEPTH], batch, self.cache)
            self.at = (depth, batch)
        if not depth:
            self.cache = self.new_cache()
        sequence = ids(tokens, self.shape, 2)
        start = time.perf_counter()
        for token in sequence:
            self._take([token], batch, self.cache)
        seconds = time.perf_counter() - start
        if depth:
            self.cache.crop(-tokens)
        return seconds


class Generating(Engine):
    """An engine that can only generate, but tells when each token was there."""

    calls = 0

    @abstractmethod
    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """Exactly so many tokens for each prompt; the times at which the last prompt's were there."""

    def _times(self, length: int, batch: int, tokens: int) -> tuple[float, list[float]]:
        # other tokens in every call, so that no cache of prompts can know them
        self.calls += 1
        prompts = [ids(length, self.shape, 1000 * self.calls + i) for i in range(batch)]
        start = time.perf_counter()
        times = self.generate(prompts, tokens)
        seconds = time.perf_counter() - start
        if len(times) != tokens:
            raise RuntimeError(f"{len(times)} tokens generated, expected {tokens}")
        return seconds, times

    def prefill(self, tokens: int) -> float:
        return self._times(tokens, 1, 1)[0]

    def decode(self, tokens: int, depth: int, batch: int) -> float:
        times = self._times(max(depth, 1), batch, tokens + 1)[1]
        return times[-1] - times[0]


class CTranslate2(Generating):
    """Its converter's model of random weights, made in a temporary directory."""

    def __init__(self, model: str, shape: dict[str, Any], threads: int, type: str | None) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        self.shape, self.words = shape, [f"t{i}" for i in range(shape["vocab_size"])]
        folder = tempfile.mkdtemp(prefix="peer-")
        try:
            words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(self.words)}, unk_token="t0"))
            special = {"unk_token": "t0", "bos_token": "t1", "eos_token": "t2"}
            PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(f"{folder}/hf")
            hf_model(shape, "float32").save_pretrained(f"{folder}/hf")
            converted = TransformersConverter(f"{folder}/hf").convert(f"{folder}/ct2", quantization=type or "int8")
            self.generator = ctranslate2.Generator(converted, intra_threads=threads, inter_threads=1)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.weights = self.generator.compute_type

    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        words = [[self.words[token] for token in prompt] for prompt in prompts]
        times: list[float] = []

        def took(step: Any) -> bool:
            if step.batch_id == len(prompts) - 1:
                times.append(time.perf_counter())
            return False  # do not stop

        self.generator.generate_batch(
            words,
            min_length=tokens,
            max_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=took,
        )
        return times


class OpenVINO(Generating):
    """Reads GGUF by itself, if the vocabulary is a byte-level one: other files get one in a temporary copy."""

    def __init__(self, model: str, shape: dict[str, Any], threads: int, type: str | None) -> None:
        import openvino
        import openvino_genai

        if type is not None:
            raise ValueError("its weights are the file's: it takes no type")
        self.openvino, self.genai, self.shape = openvino, openvino_genai, shape
        schedule = openvino_genai.SchedulerConfig()
        schedule.enable_prefix_caching = False
        schedule.max_num_batched_tokens = 1 << 16  # prompts in one step, so that all sequences decode together
        folder = tempfile.mkdtemp(prefix="peer-")
        try:
            path = with_byte_level_vocabulary(model, f"{folder}/model.gguf", shape)
            options = {"scheduler_config": schedule, "INFERENCE_NUM_THREADS": threads, "enable_save_ov_model": True}
            self.pipeline = openvino_genai.LLMPipeline(path, "CPU", **options)
            self.weights = f"{most_bytes(f'{folder}/openvino_model.xml')} made of {shape['weight_type']}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        rows = np.array(prompts, np.int64)
        inputs = self.genai.TokenizedInputs(self.openvino.Tensor(rows), self.openvino.Tensor(np.ones_like(rows)))
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        result = self.pipeline.generate(inputs, config)
        return [at / 1000 for at in result.perf_metrics.raw_metrics.m_new_token_times]


def most_bytes(xml: str) -> str:
    """The type of the constants that take the most bytes in an OpenVINO model."""
    sizes: dict[str, int] = {}
    for _, layer in ElementTree.iterparse(xml):
        if layer.tag == "data" and "size" in layer.attrib:
            kind = layer.attrib["element_type"]
            sizes[kind] = sizes.get(kind, 0) + int(layer.attrib["size"])
    return max(sizes, key=lambda kind: sizes[kind])


def with_byte_level_vocabulary(path: str, copy: str, shape: dict[str, Any]) -> str:
    """A link to the file, or a copy whose vocabulary is made up. Needs the gguf package."""
    import gguf

    reader = gguf.GGUFReader(path)
    if reader.fields["tokenizer.ggml.model"].contents() == "gpt2":
        os.symlink(os.path.abspath(path), copy)  # OpenVINO writes beside the file that it reads
        return copy
    writer = gguf.GGUFWriter(copy, "llama")
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "tokenizer.", "split.")) or name == "general.architecture":
            continue
        kind, *inner = field.types
        writer.add_key_value(name, field.contents(), kind, inner[0] if inner else None)
    if "general.file_type" not in reader.fields:  # by which OpenVINO reads the tensors
        names = {f"{prefix}_{shape['weight_type']}{suffix}" for prefix in ("ALL", "MOSTLY") for suffix in ("", "_M")}
        writer.add_file_type(next(kind for kind in gguf.LlamaFileType if kind.name in names))
    size = shape["vocab_size"]
    used = {*range(33, 127), *range(161, 173), *range(174, 256)}  # GPT-2's alphabet of bytes
    spare = iter(range(256, 512))
    alphabet = [chr(b) if b in used else chr(next(spare)) for b in range(256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    words = [*alphabet, *(f"word{i}" for i in range(256, size))][: size - 2]
    writer.add_token_list([*words, "<begin>", "<end>"])
    # its tokenizer does not compile without special tokens
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words) + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(size - 2)
    writer.add_eos_token_id(size - 1)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


ENGINES: dict[str, type[Any]] = {  # by package
    "llama2c": Llama2c,
    "llama-cpp-python": LlamaCpp,
    "transformers": Transformers,
    "ctranslate2": CTranslate2,
    "openvino-genai": OpenVINO,
}


def main() -> None:
    # Libraries print what they like: the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    job = json.loads(sys.argv[2])
    try:
        engine: Engine = ENGINES[sys.argv[1]](**job)
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        raise
    version = ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(sys.argv[1])
    answer(version=version, weights=engine.weights)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["test"] == "prefill":
                seconds = engine.prefill(request["tokens"])
            else:
                seconds = engine.decode(request["tokens"], request["depth"], request["batch"])
            answer(seconds=seconds)
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
