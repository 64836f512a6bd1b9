"""Run records: the same tokens again wherever they are replayed, and a clear word for everything that is not right."""

import copy
import json
import os
import shutil

import gguf
import ggufs
import numpy as np
import pytest
from oracle import TILES, WORDS, Shape

import llama2c
from llama2c import FormatError, Record
from llama2c.cli import main

SETTINGS = {"max_tokens": 30, "seed": 3}  # no end within 30


@pytest.fixture
def model(tmp_path):
    """A model of bytes with a context of 64; always the same, as the tests name tokens that it does not generate."""
    ggufs.write_byte_level(tmp_path / "model.gguf", np.random.default_rng(7))
    return tmp_path / "model.gguf"


@pytest.fixture
def recorded(model, tmp_path):
    """The path of a record of it."""
    llama2c.record(llama2c.load(model, threads=2), "abc", **SETTINGS).save(tmp_path / "run.json")
    return tmp_path / "run.json"


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def failure(capfd, *arguments: object) -> str:
    """The one line of a command that fails."""
    capfd.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("llama2c: error: ") and captured.err.count("\n") == 1
    return captured.err


# ---- Round trips ----


def test_command_line(data_file, tmp_path, capfdbinary, isa):
    """What --record writes replays at every level of its bits and number of threads; the text is that without it."""
    command = ["run", data_file("models/stories260K.bin"), "-z", data_file("models/tok512.bin"), "One day", "-s", "42"]
    level = llama2c.available_isas()[-1]
    command = [*map(str, command), "-n", "120", "--isa", level]
    assert main(command) == 0
    text = capfdbinary.readouterr().out
    path = str(tmp_path / "run.json")
    assert main([*command, "--threads", "2", "--record", path]) == 0
    assert capfdbinary.readouterr().out == text
    record = Record.load(path)
    assert ("One day" + record.generated.text).encode() == text.removesuffix(b"\n")
    for threads in "123":
        assert main(["replay", path, "--threads", threads, "--isa", isa]) == 0
        got = capfdbinary.readouterr()
        assert got.out == f"identical: {len(record.generated.ids)} tokens\n".encode()
        assert got.err == b""  # the logits are the same too
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_story_that_ends(data_file, tmp_path):
    """llama2.c's programs end at token 1 alone, which is not what the library does."""
    path = str(tmp_path / "run.json")
    command = ["run", str(data_file("models/stories260K.bin")), "-n", "0", "--record", path, "-s"]
    for seed in range(1, 40):
        assert main([*command, str(seed), "--force"]) == 0
        record = Record.load(path)
        if record.generated.finish_reason == "stop":
            break
    assert record.sampling.ends == (1,) and record.generated.finish_reason == "stop"
    assert llama2c.replay(path).identical


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.7, "top_p": 1.0, "max_tokens": 1000},
        {"ignore_eos": True},
        {"max_tokens": 0},
        {"max_tokens": 1},
        {"seed": 2**64 - 1},
    ],
)
def test_library(model, tmp_path, settings, threads):
    settings = {**SETTINGS, **settings}
    llm = llama2c.load(model, threads=2)
    record = llama2c.record(llm, "abc", **settings)
    result = llm.generate("abc", **settings)
    assert str(record) == record.generated.text == result.text
    assert list(record.generated.ids) == result.tokens
    assert (list(record.prompt.ids), record.sampling.seed) == (result.prompt_tokens, result.seed)
    assert record.generated.finish_reason == result.finish_reason
    record.save(tmp_path / "run.json")
    assert Record.load(tmp_path / "run.json") == record
    replay = llama2c.replay(tmp_path / "run.json", threads=threads)
    assert replay.identical and replay.same_logits
    assert (replay.tokens, replay.isa) == (len(result.tokens), llm.isa)


@pytest.mark.parametrize(
    "prompt", [[257, 97, 98], np.array([1, 2, 3]), b"\xff\x00abc", "🦙 \udcff", "ab\r\n\u2028[\n1,\n2]"]
)
def test_prompts_of_all_kinds(model, tmp_path, prompt):
    record = llama2c.record(llama2c.load(model), prompt, **SETTINGS)
    assert (record.prompt.text is None) == (not isinstance(prompt, str | bytes))
    record.save(tmp_path / "run.json")
    assert Record.load(tmp_path / "run.json") == record
    assert llama2c.replay(record).identical


def test_stop_strings(model):
    llm = llama2c.load(model)
    whole = llm.generate("abc", temperature=0, max_tokens=40, ignore_eos=True).text
    stop = whole[20:22]
    record = llama2c.record(llm, "abc", temperature=0, max_tokens=40, ignore_eos=True, stop=["\x00\x00", stop])
    assert record.generated.text == whole[: whole.find(stop)]
    assert record.sampling.stop == ("\x00\x00", stop)
    assert llama2c.replay(record).identical


def test_options_that_change_the_text(model, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain = llama2c.record(llama2c.load(model), "abc", **SETTINGS)
    path = tmp_path / "run.json"
    command = ["run", str(model), "abc", "-s", "5", "--record", str(path), "--quantize", "q8_0"]
    assert main([*command, "--rope-theta", "500", "--context", "40", "-n", "0"]) == 0
    record = Record.load(path)
    assert record.options == llama2c.records.Options(40, 500.0, "q8_0", "f16")
    assert record.generated.logits_sha256 != plain.generated.logits_sha256
    assert llama2c.replay(path).same_logits
    assert llama2c.replay(path, cache=False).same_logits
    edit(path, lambda content: content["options"].update(quantize="q9_0"))
    assert "q9_0" in failure(capfd, "replay", path)


def test_a_hash_is_made_once(model, monkeypatch):
    llm = llama2c.load(model)
    llama2c.record(llm, "a", max_tokens=1)

    def never(*_):
        raise AssertionError("hashed again")

    monkeypatch.setattr("hashlib.file_digest", never)
    llama2c.record(llm, "b", max_tokens=1)
    os.utime(model, ns=(1, 1))
    with pytest.raises(AssertionError, match="again"):
        llama2c.record(llm, "c", max_tokens=1)


# ---- Something differs ----

CHANGES = {
    "token 3: expected 9, got": lambda r: r["generated"]["ids"].__setitem__(3, 9),
    "token 29: expected the end, got": lambda r: r["generated"]["ids"].pop(),
    "token 30: expected 7, got the end": lambda r: r["generated"]["ids"].append(7),
    "finish reason: expected stop, got length": lambda r: r["generated"].update(finish_reason="stop"),
    "character 0 of the text: expected 'another', got": lambda r: r["generated"].update(text="another"),
    "token 2 of the prompt: expected 98, got 99": lambda r: r["prompt"]["ids"].__setitem__(2, 98),
    "token 3 of the prompt: expected the end, got 100": lambda r: r["prompt"].update(text="abcd"),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_record_that_was_changed(recorded, capfd, message):
    edit(recorded, CHANGES[message])
    assert main(["replay", str(recorded)]) == 1
    captured = capfd.readouterr()
    assert message in captured.out and captured.out.startswith("different after ")
    assert captured.out.count("\n") == 1 and captured.err == ""


def test_another_seed(recorded):
    edit(recorded, lambda r: r["sampling"].update(seed=6))
    replay = llama2c.replay(recorded)
    assert not replay.identical and replay.tokens < 30
    assert f"token {replay.tokens}: expected" in replay.difference


def test_other_logits_and_another_version(recorded, capfd):
    """The tokens decide; who replays with another version is told when something differs."""
    edit(recorded, lambda r: r["generated"].update(logits_sha256="0" * 64))
    assert main(["replay", str(recorded)]) == 0
    captured = capfd.readouterr()
    assert captured.out == "identical: 30 tokens\n" and "logits differ" in captured.err
    edit(recorded, lambda r: r.update(llama2c="0.0.7"))
    assert main(["replay", str(recorded)]) == 0
    assert "recorded by version 0.0.7" in capfd.readouterr().err


def test_a_level_that_is_not_here(recorded, capfd):
    edit(recorded, lambda r: r["machine"].update(isa="sve9", threads=700))
    assert main(["replay", str(recorded)]) == 0
    captured = capfd.readouterr()
    assert captured.out == "identical: 30 tokens\n"
    assert "level sve9" in captured.err and captured.err.count("\n") == 1
    assert "no instruction-set level" in failure(capfd, "replay", recorded, "--isa", "sve9")


def test_a_level_of_another_machine(model, tmp_path):
    """Its bits are those of all levels but two: a record goes from machine to machine."""
    llama2c.record(llama2c.load(model, isa="scalar"), "abc", **SETTINGS).save(tmp_path / "run.json")
    edit(tmp_path / "run.json", lambda record: record["machine"].update(isa="sve9"))
    result = llama2c.replay(tmp_path / "run.json")
    assert result.identical and result.same_logits
    assert result.isa == [level for level in llama2c.available_isas() if level not in TILES + WORDS][-1]


def test_the_recorded_level_is_taken(model, monkeypatch):
    monkeypatch.delenv("LLAMA2C_ISA", raising=False)
    record = llama2c.record(llama2c.load(model, isa="scalar"), "abc", **SETTINGS)
    assert llama2c.replay(record).isa == "scalar"


# ---- Files ----


def test_another_model(recorded, model, tmp_path, capfd):
    moved = tmp_path / "elsewhere.gguf"
    model.rename(moved)
    assert f"{model}: No such file" in failure(capfd, "replay", recorded)
    assert main(["replay", str(recorded), "--model", str(moved)]) == 0
    with moved.open("r+b") as file:
        file.seek(-5, 2)
        byte = file.read(1)
        file.seek(-5, 2)
        file.write(bytes([byte[0] ^ 1]))
    message = failure(capfd, "replay", recorded, "--model", moved)
    assert f"{moved}: not the model of the record: its SHA-256 is " in message
    with moved.open("ab") as file:
        file.write(b"\0")
    assert f"has {moved.stat().st_size} bytes, expected" in failure(capfd, "replay", recorded, "--model", moved)
    (tmp_path / "folder").mkdir()
    assert "folder: " in failure(capfd, "replay", recorded, "--model", tmp_path / "folder")


def test_every_part_of_a_split_model_counts(model, tmp_path, rng, capfd):
    shape = Shape(64, 96, 2, 4, 2, 259, 40)
    writer = gguf.GGUFWriter(tmp_path / "split.gguf", "llama", split_max_tensors=10)
    numbers = {"context_length": 40, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96}
    for key, value in {**numbers, "attention.head_count": 4, "attention.head_count_kv": 2}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for name, (_, data) in ggufs.random_tensors(rng, shape, "F32").items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) == 3
    path = tmp_path / "run.json"
    llama2c.record(llama2c.load(parts[0], tokenizer=model), "abc", **SETTINGS).save(path)
    assert [file.name for file in Record.load(path).model.files] == [part.name for part in parts]
    assert llama2c.replay(path).identical
    assert "it has 1 files, expected 3" in failure(capfd, "replay", path, "--model", model)
    data = bytearray(parts[2].read_bytes())
    data[-9] ^= 1
    parts[2].write_bytes(data)
    assert f"{parts[2]}: not the model of the record: its SHA-256" in failure(capfd, "replay", path)
    parts[1].unlink()
    assert f"{parts[1]}: No such file" in failure(capfd, "replay", path)


def test_a_tokenizer_that_is_no_file(model):
    llm = llama2c.load(model, tokenizer=llama2c.load_tokenizer(model))
    with pytest.raises(TypeError, match="tokenizer is an object"):
        llama2c.record(llm, "abc", max_tokens=2)


def test_a_tokenizer_of_its_own(data_file, tmp_path, capfd, monkeypatch):
    model, tokenizer = tmp_path / "model.bin", tmp_path / "tok512.bin"
    shutil.copy(data_file("models/stories260K.bin"), model)
    shutil.copy(data_file("models/tok512.bin"), tokenizer)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.json"
    assert main(["run", "model.bin", "Tim", "-n", "30", "--record", "run.json"]) == 0  # found beside the model
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert main(["replay", str(path)]) == 0
    moved = tokenizer.rename(tmp_path / "other" / "moved.bin")
    assert f"{tokenizer}: No such file" in failure(capfd, "replay", path)
    assert main(["replay", str(path), "-z", "moved.bin"]) == 0
    data = bytearray(moved.read_bytes())
    data[-1] ^= 1
    moved.write_bytes(data)
    assert "moved.bin: not the tokenizer of the record: its SHA-256" in failure(capfd, "replay", path, "-z", moved)


def test_the_models_own_tokenizer(recorded, model, capfd):
    assert "whose model has its own" in failure(capfd, "replay", recorded, "-z", model)


def test_an_existing_file_is_kept(model, tmp_path, capfd):
    path = tmp_path / "run.json"
    path.write_text("precious")
    command = ["run", model, "abc", "-s", "5", "--record", path]
    assert "run.json: it exists" in failure(capfd, *command)  # before any text
    assert path.read_text() == "precious"
    assert main([*map(str, command), "--force"]) == 0
    assert llama2c.replay(path).identical
    with pytest.raises(FileExistsError):
        Record.load(path).save(path)
    assert "No such file or directory" in failure(capfd, *command[:-1], tmp_path / "none" / "run.json")


def test_nothing_is_left_of_a_run_that_fails(model, tmp_path, monkeypatch, capfd):
    command = ["run", model, "abc" * 10, "--record", tmp_path / "run.json"]
    assert "21 tokens and -n is 5: nothing is generated" in failure(capfd, *command, "-n", "5")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("llama2c.generation.Run.tokens", interrupted)
    assert main([str(argument) for argument in command]) == 130
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_a_chat_is_not_recorded(model, tmp_path, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["run", str(model), "-m", "chat", "--record", str(tmp_path / "run.json")])
    assert caught.value.code == 2
    assert "a conversation is not recorded" in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["model.gguf"]


# ---- Malformed records ----

WRONG = [
    "x",
    "",
    0,
    -1,
    7,
    10**30,
    2**31,
    1.5,
    1e308,
    True,
    None,
    [],
    {},
    ["x"],
    [-1],
    [None],
    [[0]],
    [10**30],
    {"a": 1},
]
SCHEMA = {
    "format": str,
    "format_version": int,
    "llama2c": str,
    "model": dict,
    "model.path": str,
    "model.files": list,
    "model.files.0": dict,
    "model.files.0.name": str,
    "model.files.0.bytes": int,
    "model.files.0.sha256": str,
    "tokenizer": (dict, type(None)),
    "options": dict,
    "options.context": int,
    "options.rope_theta": (int, float, type(None)),
    "options.quantize": (str, type(None)),
    "options.kv_type": str,
    "machine": dict,
    "machine.isa": str,
    "machine.threads": int,
    "prompt": dict,
    "prompt.text": (str, type(None)),
    "prompt.ids": list,
    "prompt.ids.1": int,
    "sampling": dict,
    "sampling.temperature": (int, float),
    "sampling.top_p": (int, float),
    "sampling.seed": int,
    "sampling.max_tokens": int,
    "sampling.stop": list,
    "sampling.ends": list,
    "sampling.ends.0": int,
    "generated": dict,
    "generated.ids": list,
    "generated.ids.2": int,
    "generated.text": str,
    "generated.finish_reason": str,
    "generated.logits_sha256": str,
    "lora": list,
}


def all_keys(value: object, prefix: str = "") -> set[str]:
    """Every key of a JSON value, the first item of a list standing for all."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    keys = set()
    for key, inner in items:
        keys |= {f"{prefix}{key}"} | all_keys(inner, f"{prefix}{key}.")
    return keys


def test_the_schema_is_complete(recorded):
    content = json.loads(recorded.read_text())
    content["prompt"]["ids"] = content["generated"]["ids"] = [{}]  # SCHEMA names another item
    keys = {key for key in all_keys(content) if not key.endswith("ids.0")}
    assert keys == SCHEMA.keys() - {"prompt.ids.1", "generated.ids.2"}


@pytest.mark.parametrize("key", SCHEMA)
def test_malformed(recorded, capfd, monkeypatch, key):
    """Every key removed or of a wrong type is named; a wrong value of the right type is an error or a difference."""
    monkeypatch.delenv("LLAMA2C_TRACEBACK", raising=False)
    good = json.loads(recorded.read_text())
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    shown = key.replace(".0", "[0]").replace("ids.", "ids[").replace("ends.", "ends[")
    shown = shown + "]" if "[" in shown and "]" not in shown else shown

    def broken():
        content = copy.deepcopy(good)
        place = content
        for part in path:
            place = place[part]
        return content, place

    if isinstance(last, str) and key != "lora":  # which records of before do not have
        content, place = broken()
        del place[last]
        recorded.write_text(json.dumps(content))
        assert f"run.json: {shown}: missing, expected " in failure(capfd, "replay", recorded)
    for value in WRONG:
        content, place = broken()
        place[last] = value
        recorded.write_text(json.dumps(content))
        if not isinstance(value, SCHEMA[key]) or isinstance(value, bool):
            message = failure(capfd, "replay", recorded)
            assert f"run.json: {shown}: expected " in message
            continue
        capfd.readouterr()
        assert main(["replay", str(recorded)]) in (0, 1), value
        captured = capfd.readouterr()
        assert len((captured.out + captured.err).splitlines()) <= 2, value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"\0" * 100, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format": NaN}', "not JSON: NaN"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", "the file: expected an object, got []"),
        (b"7", "the file: expected an object, got 7"),
        (b"{}", "format: missing, expected a string"),
        (b'{"format": "GGUF", "format_version": 1}', 'format: expected "llama2c run record", got "GGUF"'),
        (b'{"format": "llama2c run record", "format_version": 2}', "format_version: expected 1, got 2"),
        (b'{"format": "llama2c run record", "format_version": 1}', "llama2c: missing, expected a string"),
    ],
)
def test_files_that_are_no_records(tmp_path, capfd, content, message):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    assert f"run.json: {message}" in failure(capfd, "replay", path)
    with pytest.raises(FormatError, match=r"run\.json"):
        llama2c.replay(path)


def test_missing_records(tmp_path, capfd):
    assert "none.json: No such file" in failure(capfd, "replay", tmp_path / "none.json")
    assert str(tmp_path) in failure(capfd, "replay", tmp_path)


def test_keys_that_are_unknown(recorded):
    edit(recorded, lambda r: r.update(comment="mine"))
    assert llama2c.replay(recorded).identical


def test_a_record_that_is_made_wrong(recorded):
    """Not only files are checked."""
    sampling = Record.load(recorded).sampling
    with pytest.raises(ValueError, match="top_p: expected 0 to 1"):
        type(sampling)(1.0, 2.0, sampling.seed, 5, (), ())


def test_help(capfd):
    with pytest.raises(SystemExit):
        main(["replay", "--help"])
    out = capfd.readouterr().out
    assert "identical" in out and max(map(len, out.splitlines())) <= 120
