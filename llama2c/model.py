"""A loaded model with its tokenizer: what `llama2c.load` gives."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from llama2c._core import Session, Tokenizer, Transformer
from llama2c.generation import Generation, Piece, Prompt, Prompts, generate, prompt_ids, stream
from llama2c.lora import Lora, adapters_of
from llama2c.packaged import packaged_model
from llama2c.scoring import Score
from llama2c.threads import default_threads
from llama2c.tokenizers import StrPath, checked, find_tokenizer, load_tokenizer
from llama2c.weights import open_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def open_transformer(
    path: str,
    *,
    isa: str | None = None,
    mmap: bool = True,
    rope_theta: float | None = None,
    kv_type: str | None = None,
    quantize: str | None = None,
    cache: bool = True,
    threads: int | None = None,
    lora: Lora | None = None,
) -> Transformer:
    """The weights of a model, in another type if `quantize` says so, with its adapters; see load()."""
    theta = rope_theta or 0.0
    if quantize is None:
        return open_weights(path, isa=isa, mmap=mmap, rope_theta=theta, kv_type=kv_type, lora=lora)
    from llama2c.cache import quantized

    with quantized(path, quantize, cache=cache, threads=threads) as file:
        # Windows removes no file that is mapped
        mmap = mmap and (cache or os.name != "nt")
        return open_weights(file, isa=isa, mmap=mmap, rope_theta=theta, kv_type=kv_type, lora=lora)


@dataclass(frozen=True)
class Config:
    """Shape and constants of a model."""

    format: str  # of the file: "llama2.c v0", "GGUF v3", "safetensors", ...
    dim: int  # width of the residual stream
    hidden_dim: int  # width of the feed-forward layer
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key/value heads
    head_dim: int
    vocab_size: int
    context: int  # positions the model was trained for
    tied: bool  # the classifier is the embedding table
    weight_type: str  # of most of the weights: "F32", "Q8" (llama2.c version 2), "Q4_K", ...
    blocks: bool  # some matrices are of GGUF's integer types
    window: int  # positions that a token sees, its own the last; 0: all
    lora_rank: int  # the most values that adapters make of an input: sum of the ranks for it; 0: no adapters
    kv_type: str  # of the keys and values of a session: "f32", "f16" or "q8"
    group_size: int  # int8 values a scale in llama2.c's version 2, else 0
    norm_eps: float
    rope_theta: float


class Llama:
    """A model and its tokenizer. Threads may share it: every call works on a session of its own.

    Made by `llama2c.load`. Pickles as its path and options. `close` (or the end of a `with`) drops the weights.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        tokenizer: StrPath | Tokenizer | None = None,
        threads: int | None = None,
        isa: str | None = None,
        mmap: bool = True,
        context: int | None = None,
        rope_theta: float | None = None,
        kv_type: str | None = None,
        quantize: str | None = None,
        cache: bool = True,
        lora: Lora | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.threads = default_threads() if threads is None else threads
        if self.threads < 1:
            raise ValueError(f"threads is {threads}, expected at least 1")
        self._options: dict[str, Any] = {
            "tokenizer": tokenizer,
            "threads": threads,
            "isa": isa,
            "mmap": mmap,
            "context": context,
            "rope_theta": rope_theta,
            "kv_type": kv_type,
            "quantize": quantize,
            "cache": cache,
            "lora": adapters_of(lora) or None,
        }
        self._transformer: Transformer | None = open_transformer(
            self.path,
            isa=isa,
            mmap=mmap,
            rope_theta=rope_theta,
            kv_type=kv_type,
            quantize=quantize,
            cache=cache,
            threads=threads,
            lora=self._options["lora"],
        )
        self.config = Config(**self._transformer.config)
        self.context = self.config.context if context is None else context
        if self.context < 1:
            raise ValueError(f"context is {context}, expected at least 1")
        self._tokenizer_path = None if isinstance(tokenizer, Tokenizer | None) else os.fspath(tokenizer)
        if tokenizer is not None:
            # Checked now: a tokenizer that was named and does not fit is an error of the call that named it.
            given = isinstance(tokenizer, Tokenizer)
            opened = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
            name = "the tokenizer" if given else os.fspath(tokenizer)  # type: ignore[arg-type]
            self.tokenizer = checked(opened, self.config.vocab_size, name, self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: the one named, else the first that fits beside the checkpoint. Raises TokenizerError."""
        tokenizer, self._tokenizer_path = find_tokenizer(self.path, self.config.vocab_size)
        return tokenizer

    @property
    def tokenizer_path(self) -> str | None:
        """The file that the tokenizer is from, a GGUF model's own for example; None for one given as an object."""
        _ = self.tokenizer  # found when first used
        return self._tokenizer_path

    @property
    def options(self) -> dict[str, Any]:
        """What `load` was given besides the path."""
        return dict(self._options)

    @property
    def transformer(self) -> Transformer:
        """The weights. Raises ValueError after close()."""
        if self._transformer is None:
            raise ValueError(f"{self.path}: the model is closed")
        return self._transformer

    @property
    def isa(self) -> str:
        """Instruction-set level in use; see llama2c.available_isas()."""
        return self.transformer.isa

    def session(self, *, context: int | None = None, chunk: int = 256) -> Session:
        """A fresh timeline. context: positions it can hold (the model's by default); chunk: prompt rows a step."""
        if context is not None and context < 1:
            raise ValueError(f"context is {context}, expected at least 1")
        return Session(
            self.transformer, context=self.context if context is None else context, threads=self.threads, chunk=chunk
        )

    def logits(self, ids: "Sequence[int] | NDArray[np.integer]") -> "NDArray[np.float32]":
        """Logits after each token of a prompt, float32 [len(ids), vocab_size]. Raises ValueError, ContextError."""
        return self.session(context=max(1, min(len(ids), self.context))).prefill_all(ids)

    def score(self, prompt: Prompt) -> Score:
        """How probable the model finds a text or ids, token by token. Raises ContextError if it does not fit."""
        ids = prompt_ids(self.tokenizer, prompt)
        session = self.session(context=max(1, min(len(ids), self.context)))
        return Score(ids, session.score(ids).tolist())

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, and one prompt
        self,
        prompt: Prompt = ...,
        *,
        max_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        stop: str | Sequence[str] = ...,
        ignore_eos: bool = ...,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: Prompts,
        *,
        max_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | Sequence[int] | None = ...,
        stop: str | Sequence[str] = ...,
        ignore_eos: bool = ...,
        throughput: bool = ...,
    ) -> list[Generation]: ...

    def generate(
        self,
        prompt: "Prompt | Prompts" = "",
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | Sequence[int] | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        throughput: bool = False,
    ) -> Generation | list[Generation]:
        """Continue a prompt, or each of a list of prompts; see `llama2c.generate` for the options."""
        return generate(
            self,
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
            ignore_eos=ignore_eos,
            throughput=throughput,
        )

    def stream(
        self,
        prompt: Prompt = "",
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> Iterator[Piece]:
        """Continue a prompt piece by piece as it is computed; the pieces' texts join to generate()'s text."""
        return stream(
            self,
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
            ignore_eos=ignore_eos,
        )

    def close(self) -> None:
        """Let the weights go as soon as no session needs them."""
        self._transformer = None

    def __enter__(self) -> "Llama":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._transformer is None else f"isa={self.isa!r}, threads={self.threads}"
        return f"<Llama {self.path!r} {self.config.format}, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._options["tokenizer"], Tokenizer):
            raise TypeError("a model whose tokenizer is an object, not a path, cannot be pickled")
        # absolute: another process may run in another directory
        tokenizer = self._options["tokenizer"]
        named = None if tokenizer is None else os.path.abspath(tokenizer)
        lora = tuple((os.path.abspath(path), scale) for path, scale in self._options["lora"] or ()) or None
        return _reopen, (os.path.abspath(self.path), {**self._options, "tokenizer": named, "lora": lora})


def _reopen(path: str, options: dict[str, Any]) -> Llama:
    return Llama(path, **options)


def load(
    path: StrPath | None = None,
    *,
    tokenizer: StrPath | Tokenizer | None = None,
    threads: int | None = None,
    isa: str | None = None,
    mmap: bool = True,
    context: int | None = None,
    rope_theta: float | None = None,
    kv_type: str | None = None,
    quantize: str | None = None,
    cache: bool = True,
    lora: Lora | None = None,
) -> Llama:
    """Open a model.

    path: a GGUF file (of a split one the first part), a llama2.c checkpoint of version 0, 1 or 2, or a Hugging Face
        directory of a Llama or Mistral with weights of F32, F16 or BF16: config.json beside model.safetensors, or
        beside model.safetensors.index.json and its files. DIR/model.safetensors does as well. None: the packaged model.
    tokenizer: a llama2.c tokenizer.bin, a SentencePiece or Llama 3 .model, a GGUF file, or a Tokenizer. None: a GGUF
        file's own; for others `tokenizer.bin`, `tok<size>.bin`, `tokenizer.model` or `tok<size>.model` in the model's
        directory or in the current one, in a Hugging Face directory `tokenizer.json` too, when first needed.
    threads: for each step; None: OMP_NUM_THREADS, else the physical cores that the process may use. A process forked
        while a model is open computes on one thread (the text is the same); one that is spawned, on all.
    isa: instruction-set level, one of available_isas(), which tells what they agree in; None: LLAMA2C_ISA, else the
        best.
    mmap: map the weights; False reads them into memory, for files that may shrink or vanish while in use.
    context: positions of a session; None: what the model was trained for.
    rope_theta: base of the rotary embedding; None: the file's, or 10000 for llama2.c files, which do not store it (Code
        Llama has 1e6).
    kv_type: of the keys and values that a session holds: "f32", "f16", or "q8" (int8 with a scale for each position
        and head: half of f16's memory, an error of about that of Q8_0 weights). None: f32 for llama2.c files and where
        most of the weights are F32, else f16.
    quantize: "q8_0", "q4_k_m", ...: compute with the weights in that type (see llama2c.quantize). The first time they
        are quantised, into a file in the cache (`llama2c cache`); later that file is mapped.
    cache: False quantises every time, into a temporary file, and leaves the cache alone.
    lora: a LoRA adapter of PEFT's, its directory or its adapter_model.safetensors, or several, each a path or (path,
        scale). They are computed beside the weights, which stay as they are whatever their type: x W^T + (x A^T) B^T.

    Raises OSError, FormatError, UnsupportedError, TokenizerError or ValueError; the message names the file.
    """
    return Llama(
        packaged_model() if path is None else path,
        tokenizer=tokenizer,
        threads=threads,
        isa=isa,
        mmap=mmap,
        context=context,
        rope_theta=rope_theta,
        kv_type=kv_type,
        quantize=quantize,
        cache=cache,
        lora=lora,
    )
