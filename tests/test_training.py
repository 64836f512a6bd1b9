"""llama2c train: its model is the engine's, its runs repeat and resume to the bit, and what stops one loses nothing."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import require_modules
from oracle import nmse

import llama2c
from llama2c.cli import main
from llama2c.training.settings import read_settings
from llama2c.training.shards import open_dataset
from llama2c.training.tokenizing import tokenize
from llama2c.training.vocabulary import train_vocabulary
from llama2c.training.windows import validation_windows

pytestmark = pytest.mark.slow  # torch and runs: once is enough, and not under the sanitizers
WORDS = "the king and his men went over the sea to find what the old queen had hidden there 12 years before".split()
SMALL = ["--dim", "32", "--n-layers", "2", "--n-heads", "2", "--hidden-dim", "48", "--context", "32", "--threads", "1"]
QUICK = [
    "--batch-size",
    "4",
    "--warmup",
    "10",
    "--learning-rate",
    "0.005",
    "--evaluate-every",
    "10",
    "--log-every",
    "1",
]


@pytest.fixture(scope="session")
def torch():
    """torch; missing, it is a failure in CI, unless LLAMA2C_PARITY_OPTIONAL=1, and a skip elsewhere."""
    require_modules("torch", extra="train")
    import torch

    return torch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Tokens of random sentences, a tenth for validation."""
    folder = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(3)
    sentences = [" ".join(rng.choice(WORDS, rng.integers(4, 12))).capitalize() + "." for _ in range(1500)]
    (folder / "text.txt").write_text("\n".join(sentences))
    train_vocabulary([folder / "text.txt"], folder / "tok.model", 320)
    tokenize([folder / "text.txt"], folder / "data", tokenizer=folder / "tok.model", validation=0.1, workers=1)
    return folder / "data"


def command(dataset: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--data", str(dataset), "--out", str(out), *SMALL, *QUICK, *more]


def metrics(out: Path, key: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def checkpoint(torch, out: Path) -> dict:
    return torch.load(out / "checkpoint.pt", weights_only=True)


def same(torch, a: Path, b: Path) -> bool:
    first, second = checkpoint(torch, a), checkpoint(torch, b)
    return all(
        torch.equal(x, y) for key in ("trained", "average") for x, y in zip(first[key], second[key], strict=True)
    )


# ---- The model ----

SHAPES = [
    {"dim": 48, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "hidden_dim": 80, "vocab_size": 97},
    {"dim": 40, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1, "head_dim": 26, "hidden_dim": 33, "vocab_size": 301}
    | {"tied": False, "rope_theta": 5e5, "norm_eps": 1e-6},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_the_engines(torch, tmp_path, dataset, shape):
    from llama2c.training.model import Llama
    from llama2c.training.saving import SavedAs, save_model
    from llama2c.training.settings import ModelSettings

    torch.manual_seed(1)
    model = Llama(ModelSettings(context=64, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_model(model, tmp_path / "model", open_dataset(dataset).tokenizer_path, SavedAs(64))
    ids = np.random.default_rng(1).integers(0, shape["vocab_size"], 64)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None])[0].numpy()
    assert nmse(llama2c.load(tmp_path / "model").logits(ids), expected) < 1e-9


def test_dropout_keeps_the_mean(torch):
    from llama2c.training.model import Dropout

    torch.manual_seed(2)
    x = torch.ones(1001, 1003)
    y = Dropout(0.25)(x)
    assert abs((y == 0).float().mean().item() - 0.25) < 2e-3 and abs(y.mean().item() - 1) < 3e-3
    assert torch.equal(Dropout(0.25).eval()(x), x)


# ---- Runs ----


def test_two_runs_are_equal(torch, tmp_path, dataset):
    """On one thread, as all tests here: with two, each product waits for other programs of a busy machine."""
    for name in "ab":
        assert main(command(dataset, tmp_path / name, "--steps", "200", "--dropout", "0.1")) == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") and same(torch, tmp_path / "a", tmp_path / "b")
    losses = metrics(tmp_path / "a")
    assert len(losses) == 200 and losses[-1] < losses[0] - 2
    assert len(metrics(tmp_path / "a", "validation_loss")) == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_runs_resume_to_the_same_bits(torch, tmp_path, dataset, number):
    options = ("--steps", "60", "--dropout", "0.1", "--average", "0.9", "--accumulate", "2")
    assert main(command(dataset, tmp_path / "whole", *options)) == 0
    out = tmp_path / "stopped"
    arguments = [sys.executable, "-m", "llama2c", *command(dataset, out, *options)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not (out / "metrics.jsonl").exists() or len(metrics_so_far(out)) < 15:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    process.send_signal(number)
    errors = process.communicate()[1].decode()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number and "--resume goes on" in errors, errors
    reached = checkpoint(torch, out)["step"]
    assert reached >= 10 and (reached < 60 or number == signal.SIGKILL)
    assert main(["train", "--out", str(out), "--resume"]) == 0
    assert same(torch, tmp_path / "whole", out)
    assert metrics(tmp_path / "whole") == metrics(out)
    model = "model/model.safetensors"
    assert (tmp_path / "whole" / model).read_bytes() == (out / model).read_bytes()


def metrics_so_far(out: Path) -> list[bytes]:
    return (out / "metrics.jsonl").read_bytes().splitlines()


def test_two_processes_reach_the_loss_of_one(torch, tmp_path, dataset):
    options = ("--steps", "60", "--accumulate", "2", "--precision", "f32")
    assert main(command(dataset, tmp_path / "one", *options)) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "llama2c"]
    done = subprocess.run(
        [*launch, *command(dataset, tmp_path / "two", *options)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    one, two = (metrics(tmp_path / name, "validation_loss") for name in ("one", "two"))
    assert len(one) == len(two) == 6
    assert np.allclose(one, two, rtol=0.01), (one, two)
    assert np.allclose(metrics(tmp_path / "one"), metrics(tmp_path / "two"), rtol=0.01)


def test_full_disk_keeps_the_last_checkpoint(torch, tmp_path, dataset, monkeypatch, capsys):
    from llama2c import new_file

    out = tmp_path / "run"
    assert main(command(dataset, out, "--steps", "10")) == 0
    changing = ("metrics.jsonl", "settings.toml")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.name not in changing and path.is_file()}
    write = new_file.NewFile.write

    def full(self, data):
        if self.path.endswith("settings.toml"):
            return write(self, data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    with monkeypatch.context() as patch:
        patch.setattr(new_file.NewFile, "write", full)
        assert main(["train", "--out", str(out), "--resume", "--steps", "20"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert not list(out.rglob("*.tmp-*"))
    assert main(["train", "--out", str(out), "--resume", "--steps", "20"]) == 0
    assert checkpoint(torch, out)["step"] == 20 and len(metrics(out)) == 20


def test_run_is_not_overwritten(torch, tmp_path, dataset, capsys):
    out = tmp_path / "run"
    assert main(command(dataset, out, "--steps", "2")) == 0
    assert main(command(dataset, out, "--steps", "2")) == 1
    assert "--resume goes on with it, --force begins anew" in capsys.readouterr().err
    assert main(command(dataset, out, "--steps", "2", "--force")) == 0
    assert main(["train", "--out", str(out), "--resume", "--dim", "48"]) == 1
    assert "of a run whose model.dim is 32, not 48; --force begins anew" in capsys.readouterr().err
    (out / "checkpoint.pt").write_bytes(b"PK nonsense")
    assert main(["train", "--out", str(out), "--resume"]) == 1
    assert "not a checkpoint of llama2c train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--device", "abacus"], "device abacus"),
        (["--vocab-size", "10"], "not made by the model's tokenizer"),
        (["--context", "100000"], "no shard has more than 100000 tokens"),
        (["--learning-rate", "1e30", "--steps", "20"], "try a lower learning rate"),
        (["--init-from", "nowhere.gguf"], "nowhere.gguf"),
    ],
)
def test_errors_are_named(torch, tmp_path, dataset, capsys, change, message):
    assert main(command(dataset, tmp_path / "run", *change)) == 1
    assert message in capsys.readouterr().err


def test_no_torch_is_said(tmp_path, dataset, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("torch", "llama2c.training.trainer"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(command(dataset, tmp_path / "run")) == 1
    assert "pip install 'llama2c[train]'" in capsys.readouterr().err


# ---- What a run leaves ----


@pytest.fixture(scope="module")
def trained(torch, dataset, tmp_path_factory) -> Path:
    """The directory of a run."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(command(dataset, out, "--steps", "100", "--n-heads", "4", "--n-kv-heads", "2")) == 0
    return out


def windows_of(dataset: Path) -> list[np.ndarray]:
    held = validation_windows(open_dataset(dataset).splits["validation"], 31, 20)
    return [np.append(tokens, targets[-1]).astype(np.int64) for tokens, targets in held]


def loss_of(model: llama2c.Llama, dataset: Path) -> float:
    """Nats a token of windows of the validation text."""
    scores = [model.session().score(window) for window in windows_of(dataset)]
    return -float(np.concatenate(scores).mean())


def torch_model(torch, out: Path):
    """The model of a run's checkpoint, in torch."""
    from llama2c.training.lora import add_adapters
    from llama2c.training.model import Llama
    from llama2c.training.saving import load_weights

    settings = read_settings(out / "settings.toml", {})
    model = Llama(settings.model)
    if settings.init_from:
        load_weights(model, settings.init_from)
    if settings.lora.rank:
        add_adapters(model, settings.lora)
    with torch.no_grad():
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter, saved in zip(weights, checkpoint(torch, out)["trained"], strict=True):
            parameter.copy_(saved)
    return model.eval()


def test_exports_have_the_models_loss(torch, trained, dataset, tmp_path):
    """Loss after export to .bin, GGUF F32 and back is torch's to 1e-5 nats; Q8_0 within 0.005."""
    model, losses = torch_model(torch, trained), []
    with torch.no_grad():
        for window in windows_of(dataset):
            ids = torch.from_numpy(window)[None]
            losses.append(model(ids[:, :-1], ids[:, 1:]).numpy().ravel())
    expected = float(np.concatenate(losses).mean())
    assert expected < 4  # of log(320) = 5.8
    tokenizer = trained / "model" / "tokenizer.model"
    llama2c.convert(trained / "model", tmp_path / "model.bin", tokenizer=tokenizer)
    llama2c.convert(trained / "model", tmp_path / "model.gguf", tokenizer=tokenizer)
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "back.bin")
    llama2c.convert(tmp_path / "back.bin", tmp_path / "back", tokenizer=tokenizer)
    llama2c.quantize(tmp_path / "model.gguf", tmp_path / "q8.gguf", "Q8_0")
    for name in ("model.bin", "model.gguf", "back.bin", "back"):
        assert abs(loss_of(llama2c.load(tmp_path / name, tokenizer=tokenizer), dataset) - expected) < 1e-5, name
    assert abs(loss_of(llama2c.load(trained / "model"), dataset) - expected) < 1e-5
    assert abs(loss_of(llama2c.load(tmp_path / "q8.gguf"), dataset) - expected) < 0.005
    assert (tmp_path / "model.bin").read_bytes() == (tmp_path / "back.bin").read_bytes()


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_tuning_starts_from_any_model(torch, trained, dataset, tmp_path, kind):
    base = tmp_path / "base.gguf"
    llama2c.quantize(trained / "model", base, kind)
    out = tmp_path / "tuned"
    tune = ["train", "--data", str(dataset), "--out", str(out), "--init-from", str(base), "--context", "32", *QUICK]
    assert main([*tune, "--threads", "1", "--steps", "10"]) == 0
    before, after = loss_of(llama2c.load(base), dataset), loss_of(llama2c.load(out / "model"), dataset)
    assert after < before + 0.05
    assert metrics(out)[0] < 4  # it did not begin at log(320)
    assert llama2c.load(out / "model").config.n_kv_heads == 2


@pytest.mark.parametrize("targets", ["q,k,v,o,gate,up,down", "q,v"])
def test_adapters_are_trained_loaded_and_merged(torch, trained, dataset, tmp_path, targets):
    base = tmp_path / "base.gguf"
    llama2c.quantize(trained / "model", base, "F32")
    out = tmp_path / "tuned"
    tune = ["train", "--data", str(dataset), "--out", str(out), "--init-from", str(base), "--context", "32", *QUICK]
    tune += ["--threads", "1", "--steps", "20", "--lora-rank", "3", "--lora-targets", targets]
    assert main(tune) == 0
    assert (out / "model" / "adapter_model.safetensors").stat().st_size < 30_000
    window = windows_of(dataset)[0]
    with torch.no_grad():
        expected = torch_model(torch, out)(torch.from_numpy(window)[None])[0].numpy()
    plain = llama2c.load(base).logits(window)
    assert nmse(plain, expected) > 1e-6  # it has learnt something
    adapted = llama2c.load(base, lora=out / "model")
    assert nmse(adapted.logits(window), expected) < 1e-9
    assert nmse(llama2c.load(trained / "model", lora=out / "model").logits(window), expected) < 1e-9
    llama2c.convert(base, tmp_path / "merged.gguf", lora=out / "model")
    assert nmse(llama2c.load(tmp_path / "merged.gguf").logits(window), expected) < 1e-9


# ---- What was found by trying to break it ----


def test_force_removes_nothing_before_the_run_is_sure_to_begin(torch, tmp_path, dataset, capsys, monkeypatch):
    out = tmp_path / "run"
    assert main(command(dataset, out, "--steps", "10")) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for wrong in (["--tensorboard"], ["--seed", "5000000000"], ["--device", "meta"], ["--context", "100000"]):
        assert main(command(dataset, out, "--steps", "10", "--force", *wrong)) == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert "no shard has more" in capsys.readouterr().err


def test_another_kind_of_model_in_the_same_directory(torch, trained, dataset, tmp_path, capsys):
    out, start = tmp_path / "run", ["--init-from", str(trained / "model"), "--context", "32", "--threads", "1"]
    tune = ["train", "--data", str(dataset), "--out", str(out), *QUICK, *start, "--steps", "2"]
    assert main(tune) == 0
    assert main([*tune, "--lora-rank", "2", "--force"]) == 0
    names = sorted(path.name for path in (out / "model").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    for change in (["--lora-alpha", "3"], ["--lora-rank", "0"], ["--average", "0.9"]):
        assert main(["train", "--out", str(out), "--resume", *change]) == 1
        assert "--force begins anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lora-rank", "2"], "lora.rank is set without init_from"),
        (["--init-from", "BASE", "--n-layers", "3"], "model.n_layers is 3, but"),
        (["--init-from", "OTHER"], "not made by the model's tokenizer"),
    ],
)
def test_starts_that_do_not_fit(torch, trained, dataset, tmp_path, capsys, change, message):
    base = tmp_path / "base.gguf"
    llama2c.convert(trained / "model", base)
    (tmp_path / "other.txt").write_text("quite another text, with words of its own and characters: xyz. " * 50)
    train_vocabulary([tmp_path / "other.txt"], tmp_path / "other.model", 320)
    llama2c.convert(trained / "model", tmp_path / "other.gguf", tokenizer=tmp_path / "other.model")
    names = {"BASE": str(base), "OTHER": str(tmp_path / "other.gguf")}
    arguments = ["train", "--data", str(dataset), "--out", str(tmp_path / "run"), "--context", "32"]
    assert main([*arguments, *(names.get(item, item) for item in change)]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_tuned_models_keep_positions_window_and_a_gguf_vocabulary(torch, trained, tmp_path):
    """Data made by a GGUF file's tokenizer: its vocabulary goes along, without the weights."""
    config = json.loads((trained / "model" / "config.json").read_text())
    base = tmp_path / "base"
    shutil.copytree(trained / "model", base)
    config |= {"model_type": "mistral", "sliding_window": 24, "max_position_embeddings": 64}
    (base / "config.json").write_text(json.dumps(config))
    llama2c.convert(trained / "model", tmp_path / "base.gguf")
    (tmp_path / "text.txt").write_text("the old queen went over the sea. " * 300)
    tokenize([tmp_path / "text.txt"], tmp_path / "data", tokenizer=tmp_path / "base.gguf", validation=0.1, workers=1)
    assert (tmp_path / "data" / "tokenizer.gguf").stat().st_size < (tmp_path / "base.gguf").stat().st_size / 2
    arguments = ["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--init-from", str(base)]
    arguments += ["--threads", "1", "--steps", "2", *QUICK]
    assert main([*arguments, "--context", "32"]) == 1  # wider than the window
    assert main([*arguments, "--context", "16"]) == 0
    tuned = llama2c.load(tmp_path / "run" / "model")
    assert (tuned.config.context, tuned.config.window) == (64, 24)
    assert tuned.tokenizer.encode("the queen") == llama2c.load(tmp_path / "base.gguf").tokenizer.encode("the queen")
    assert str(tuned.generate("the", max_tokens=4, seed=1))
    llama2c.convert(tmp_path / "run" / "model", tmp_path / "tuned.gguf")
    assert len(llama2c.load(tmp_path / "tuned.gguf").tokenizer) == 320
