"""tokenizer.json: the ids of the package tokenizers for every pipeline that is read, and a refusal of the others."""

import copy
import json

import hf_models
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Shape

import llama2c
from llama2c import FormatError, UnsupportedError
from llama2c.formats.tokenizer_json import read_tokenizer_json
from llama2c.tokenizers import load_tokenizer

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = "It's 12345 hello worlds, he'll say: hello   world!\n\nÜber 67 naïve \u4f60\u597d worlds.\r\n  "


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(*, use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


PRE = {
    "llama-bpe": sequence(split(WORDS + r"\p{N}{1,3}" + REST), byte_level(use_regex=False)),
    "qwen2": sequence(split(WORDS + r"\p{N}" + REST), byte_level(use_regex=False)),
    "gpt-2": byte_level(use_regex=True),
    "smollm": sequence({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)),
}


def alphabet():
    used = {*range(33, 127), *range(161, 173), *range(174, 256)}  # GPT-2's: these bytes stand for themselves
    spare = iter(range(256, 512))
    return [chr(b) if b in used else chr(next(spare)) for b in range(256)]


def pipeline(pre):
    """A tokenizer.json with merges that the text above meets."""
    pieces, merges = ["<|begin|>", "<|end|>", *alphabet()], []
    for left, right in (
        "he",
        "ll",
        ("he", "ll"),
        ("hell", "o"),
        ("\u0120", "w"),
        "or",
        ("\u0120w", "or"),
        "12",
        ("12", "3"),
        ("\u010a", "\u010a"),
        ("\u0120", "\u0120"),
        ("'", "s"),
        ("l", "d"),
        ("\u0120wor", "ld"),
        ("34"),
    ):
        merges.append([left, right])
        pieces.append(left + right)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "<|begin|>", **special, "special": True},
            {"id": 1, "content": "<|end|>", **special, "special": True},
            {"id": len(pieces), "content": "<user>", **special, "special": False},
        ],
        "normalizer": None,
        "pre_tokenizer": PRE[pre],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": pre == "llama-bpe",
            "vocab": {piece: number for number, piece in enumerate(pieces)},
            "merges": merges,
        },
    }  # fmt: skip


def written(folder, value):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(value))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    return path


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from([*TEXT.split(" "), " ", "\n", "<user>", "9", "\t", "'S"]) | st.text(max_size=5)).map(
        "".join
    )
)
@pytest.mark.parametrize("pre", PRE)
def test_the_ids_of_tokenizers(tmp_path, pre, text):
    package = pytest.importorskip("tokenizers")
    value = pipeline(pre)
    ours = load_tokenizer(written(tmp_path, value))
    theirs = package.Tokenizer.from_str(json.dumps(value))
    for sample in (text, TEXT):
        assert ours.encode(sample) == theirs.encode(sample).ids
    assert (ours.bos, ours.eos, len(ours)) == (0, 1, theirs.get_vocab_size())


@pytest.mark.parametrize("pre", PRE)
def test_forms(tmp_path, pre):
    """Merges as text, no template, no configuration beside it."""
    value = pipeline(pre)
    whole = load_tokenizer(written(tmp_path, value))
    value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]
    value["post_processor"] = {"type": "Sequence", "processors": [byte_level(use_regex=True)]}
    path = written(tmp_path, value)
    path.with_name("tokenizer_config.json").unlink()
    other = load_tokenizer(path)
    assert (other.bos, other.eos) == (-1, -1)
    assert other.encode(TEXT) == whole.encode(TEXT, bos=False) and other.decode(other.encode(TEXT)) == TEXT


@pytest.mark.parametrize("pre", PRE)
def test_a_directory_and_its_gguf(tmp_path, monkeypatch, rng, pre):
    monkeypatch.chdir(tmp_path)
    value = pipeline(pre)
    size = len(value["model"]["vocab"]) + 1
    folder = hf_models.write(tmp_path / "model", hf_models.random_model(rng, Shape(32, 64, 1, 2, 1, size, 64)))
    llm = llama2c.load(folder)
    path = written(folder, value)
    assert llm.tokenizer_path == str(path)
    llama2c.quantize(folder, tmp_path / "model.gguf", "F32")
    other = llama2c.load(tmp_path / "model.gguf")
    assert other.tokenizer.encode(TEXT) == llm.tokenizer.encode(TEXT)
    assert str(other.generate("It's", max_tokens=20, seed=3)) == str(llm.generate("It's", max_tokens=20, seed=3))


REFUSED = {
    "unigram": (lambda v: v["model"].update(type="Unigram"), UnsupportedError, 'model.type is "Unigram"; supported'),
    "bytes": (lambda v: v["model"].update(byte_fallback=True), UnsupportedError, '"BPE with byte_fallback"; supported'),
    "normalizer": (lambda v: v.update(normalizer={"type": "NFC"}), UnsupportedError, 'normalizer is {"type": "NFC"}'),
    "no pre": (lambda v: v.update(pre_tokenizer=None), UnsupportedError, "pre_tokenizer is null; supported"),
    "prefix": (
        lambda v: v.update(pre_tokenizer=byte_level(use_regex=True) | {"add_prefix_space": True}),
        UnsupportedError,
        "pre_tokenizer is {",
    ),
    "pattern": (
        lambda v: v.update(pre_tokenizer=sequence(split(r"\w+"), byte_level(use_regex=False))),
        UnsupportedError,
        "pre_tokenizer is {",
    ),
    "two": (
        lambda v: v["pre_tokenizer"]["pretokenizers"].insert(0, split(r"\w+")),
        UnsupportedError,
        "pre_tokenizer is {",
    ),
    "template": (
        lambda v: v["post_processor"]["single"].append({"SpecialToken": {"id": "<|end|>", "type_id": 0}}),
        UnsupportedError,
        "post_processor is {",
    ),
    "strip": (lambda v: v["added_tokens"][0].update(lstrip=True), UnsupportedError, "added_tokens[0] is {"),
    "no model": (lambda v: v.pop("model"), FormatError, "model: expected an object, got null"),
    "vocab": (lambda v: v["model"].update(vocab=[]), FormatError, "model.vocab: expected an object, got []"),
    "merges": (lambda v: v["model"].update(merges={}), FormatError, "model.merges: expected a list, got {}"),
    "merge": (lambda v: v["model"].update(merges=["a"]), FormatError, 'model.merges[0]: expected two pieces, got "a"'),
    "unknown merge": (lambda v: v["model"].update(merges=["q q"]), FormatError, "merge 0: "),
    "id": (lambda v: v["model"]["vocab"].update(a=1.5), FormatError, 'model.vocab: "a" has id 1.5, expected one'),
    "same id": (lambda v: v["model"]["vocab"].update(a=70), FormatError, "expected one of its own"),
    "gap": (lambda v: v["model"]["vocab"].update(new=1 << 40), FormatError, "ids, expected all from 0 on"),
    "added": (lambda v: v["added_tokens"].append({"id": "1"}), FormatError, "added_tokens[3]: expected an id"),
    "other": (lambda v: v["added_tokens"][0].update(id=5), FormatError, "id 5 is that of another token"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(tmp_path, name):
    change, kind, message = REFUSED[name]
    value = copy.deepcopy(pipeline("llama-bpe"))
    change(value)
    path = written(tmp_path, value)
    with pytest.raises(kind) as caught:
        load_tokenizer(path)
    assert type(caught.value) is kind and str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model": NaN}', "\udcff"])
def test_no_json(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match=r"tokenizer\.json: "):
        read_tokenizer_json(path)
