"""The directory of a run:

settings.toml     what was asked for
checkpoint.pt     weights, optimizer and counters of the last save: what --resume goes on from
metrics.jsonl     a line every log_every steps, and one an evaluation
loss.svg          the same as a plot
model/            the best model so far: model.safetensors, config.json and the tokenizer, or a LoRA adapter
"""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama2c._core import FormatError
from llama2c.new_file import NewFile
from llama2c.training.plot import loss_plot

if TYPE_CHECKING:
    import torch

SETTINGS, CHECKPOINT, METRICS, PLOT, MODEL = "settings.toml", "checkpoint.pt", "metrics.jsonl", "loss.svg", "model"
MODEL_FILES = ("*.safetensors", "config.json", "adapter_config.json", "tokenizer*")  # of model/
VERSION = 1  # of checkpoint.pt


class RunFolder:
    """Reads and writes the files of a run; every file but metrics.jsonl is replaced as a whole."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._metrics: list[dict[str, Any]] = []

    @property
    def checkpoint_path(self) -> Path:
        """Of checkpoint.pt."""
        return self.path / CHECKPOINT

    @property
    def settings_path(self) -> Path:
        """Of settings.toml."""
        return self.path / SETTINGS

    @property
    def model_path(self) -> Path:
        """Of model/."""
        return self.path / MODEL

    def begin(self) -> None:
        """Make the directory of a new run; what an earlier one left is removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, METRICS, PLOT):
            (self.path / name).unlink(missing_ok=True)
        for old in MODEL_FILES:
            for path in self.model_path.glob(old):
                path.unlink()

    def save_settings(self, text: str) -> None:
        """Replace settings.toml."""
        write(self.settings_path, text.encode())

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace checkpoint.pt. On an error the old one stays."""
        import torch

        data = io.BytesIO()
        torch.save({"version": VERSION, **state}, data)
        write(self.checkpoint_path, data.getbuffer())

    def load(self, device: "torch.device") -> dict[str, Any]:
        """The state of checkpoint.pt. Raises OSError, or FormatError."""
        import torch

        path = self.checkpoint_path
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # zip, pickle and torch have many
            raise FormatError(f"{path}: not a checkpoint of llama2c train: {error}") from None
        if not isinstance(state, dict) or state.get("version") != VERSION:
            raise FormatError(f"{path}: not a checkpoint of llama2c train, version {VERSION}")
        return state

    def resume_metrics(self, step: int) -> None:
        """Forget the lines that are past `step`, the one to go on from; a line that was cut off too."""
        path = self.path / METRICS
        kept = []
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                metrics = json.loads(line)
            except ValueError:
                continue
            if isinstance(metrics, dict) and metrics.get("step", step + 1) <= step:
                kept.append(metrics)
        self._metrics = kept
        write(path, b"".join(_line(metrics) for metrics in kept))

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Append a line to metrics.jsonl."""
        self._metrics.append(dict(metrics))
        with open(self.path / METRICS, "ab") as file:
            file.write(_line(metrics))

    def plot(self) -> None:
        """Replace loss.svg."""
        write(self.path / PLOT, loss_plot(self._points("loss"), self._points("validation_loss")).encode())

    def _points(self, key: str) -> Iterable[tuple[int, float]]:
        return [(metrics["step"], metrics[key]) for metrics in self._metrics if key in metrics]


def _line(metrics: Mapping[str, float | int]) -> bytes:
    return json.dumps(metrics).encode() + b"\n"


def write(path: Path, data: "bytes | memoryview") -> None:
    """Replace a file; it is whole or the old one."""
    with NewFile(path, overwrite=True) as file:
        file.write(data)
