"""The training loop.

    windows --model--> losses --backward--> gradients --AdamW--> weights --now and then--> best model, checkpoint

A step is a function of settings, weights and its number: windows and dropout are drawn anew for each from the seed, so
a run that goes on from a checkpoint computes the bits of one that was never stopped (on a CPU, with as many threads).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llama2c._core import FormatError
from llama2c.training.hardware import Hardware, hardware
from llama2c.training.lora import add_adapters
from llama2c.training.model import Llama
from llama2c.training.run_folder import RunFolder
from llama2c.training.saving import load_weights, model_settings, save_adapter, save_model
from llama2c.training.settings import Settings, TrainSettings, to_toml
from llama2c.training.shards import Dataset, open_dataset
from llama2c.training.windows import Windows, validation_windows


@dataclass(frozen=True)
class Progress:
    """A step that is done."""

    step: int  # from 1
    steps: int
    loss: float  # nats a token, mean of its windows
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    mfu: float  # part of the speed of a large product
    validation: float  # nats a token of the last evaluation, NaN before the first
    characters_validation: float  # the same a character of the text
    best: float  # the lowest validation loss, nats a token


@dataclass(frozen=True)
class Training:
    """What train() did."""

    out: str
    step: int
    best: float  # validation loss, nats a token
    best_per_character: float
    best_step: int
    stopped: bool  # by `stop`, before the last step


class Writer(Protocol):
    """Takes metrics: TensorBoard's SummaryWriter."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """One value at a step."""


def train(
    settings: Settings,
    *,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Training:
    """Train a model; all that it leaves is in settings.out (see run_folder).

    resume: go on from the checkpoint there. stop: asked after each step, ends the run after saving it.
    Raises OSError, FormatError or ValueError whose message names the file or setting.
    """
    dataset = open_dataset(settings.data)
    with hardware(settings.train) as where:
        trainer = Trainer(settings, dataset, where)
        if resume:
            trainer.resume()
        elif where.first:
            trainer.folder.begin()  # what can fail before the first step has not
        if where.first:
            trainer.folder.save_settings(to_toml(trainer.settings))
        return trainer.run(progress or (lambda _: None), stop or (lambda: False))


class Trainer:
    """A run: model, optimizer, data and counters."""

    def __init__(self, settings: Settings, dataset: Dataset, where: Hardware) -> None:
        self.settings, self.saved_as = model_settings(settings, dataset)
        settings = self.settings
        self.where, self.dataset = where, dataset
        self.folder = RunFolder(settings.out)
        t, c = settings.train, settings.model
        if t.batch_size % where.world:
            raise ValueError(f"train.batch_size is {t.batch_size}, expected a multiple of the processes, {where.world}")
        self.windows = Windows(dataset.splits["train"], c.context, t.seed)
        self.validation = validation_windows(dataset.splits["validation"], c.context, t.evaluate_windows)
        torch.manual_seed(t.seed)
        self.model = Llama(c, dropout=t.dropout, attention_dropout=t.attention_dropout)
        if settings.init_from:
            load_weights(self.model, settings.init_from)
        if settings.lora.rank:
            add_adapters(self.model, settings.lora)
        self.model.to(where.device)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.average = [parameter.detach().clone() for parameter in self.trained] if t.average else []
        self.optimizer = torch.optim.AdamW(groups(self.trained, t), lr=0.0, betas=(t.beta1, t.beta2), fused=True)
        self.computed: Any = torch.compile(self.model) if t.compile else self.model
        if where.world > 1:
            self.computed = DistributedDataParallel(self.computed)
        self.writer = self._tensorboard()
        self.peak = where.peak_flops()
        self.step = 0
        self.best, self.best_step = math.inf, 0
        self.last_validation = math.nan

    # ---- Saving ----

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "kind": self._kind(),
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "last_validation": self.last_validation,
            "trained": [parameter.detach() for parameter in self.trained],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def _kind(self) -> dict[str, Any]:
        """The settings that a run keeps for all its steps, by their names."""
        s = self.settings
        kind = {f"model.{name}": value for name, value in asdict(s.model).items()}
        kind |= {f"lora.{name}": list(value) if name == "targets" else value for name, value in asdict(s.lora).items()}
        return {**kind, "init_from": bool(s.init_from), "train.average": s.train.average}

    def resume(self) -> None:
        """Take over the checkpoint in the run's directory."""
        state = self.folder.load(self.where.device)
        for name, value in self._kind().items():
            saved = state.get("kind", {}).get(name)
            if saved != value:
                raise ValueError(
                    f"{self.folder.checkpoint_path}: of a run whose {name} is {saved}, not {value}; --force begins anew"
                )
        try:
            with torch.no_grad():
                for name, own in (("trained", self.trained), ("average", self.average)):
                    for parameter, saved in zip(own, state[name], strict=True):
                        parameter.copy_(saved)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.best_step = int(state["step"]), int(state["best_step"])
            self.best, self.last_validation = float(state["best"]), float(state["last_validation"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FormatError(f"{self.folder.checkpoint_path}: not a checkpoint of such a run: {error}") from None
        if self.where.first:
            self.folder.resume_metrics(self.step)

    def save(self) -> None:
        """Write the checkpoint and the plot."""
        if self.where.first:
            self.folder.save(self.state())
            self.folder.plot()
        self.where.wait()

    def save_best(self) -> None:
        """Write the model, or its adapters."""
        if self.where.first:
            with self.averaged():
                if self.settings.lora.rank:
                    save_adapter(self.model, self.settings, self.folder.model_path)
                else:
                    save_model(self.model, self.folder.model_path, self.dataset.tokenizer_path, self.saved_as)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """With the moving average in place of the weights, if there is one."""
        if not self.average:
            yield
            return
        kept = [parameter.detach().clone() for parameter in self.trained]
        _copy(self.trained, self.average)
        try:
            yield
        finally:
            _copy(self.trained, kept)

    # ---- Computing ----

    def run(self, progress: Callable[[Progress], None], stop: Callable[[], bool]) -> Training:
        """Steps to the last one."""
        t = self.settings.train
        stopped = False
        while self.step < t.steps and not stopped:
            begun = time.perf_counter()
            loss, norm, asked = self.optimize(stop())
            stopped = asked and self.step < t.steps
            seconds = time.perf_counter() - begun
            tokens = t.batch_size * t.accumulate * self.settings.model.context
            speed = self.model.flops(tokens, self.settings.model.context) / seconds
            if self.step % t.evaluate_every == 0 or self.step == t.steps:
                self.evaluate()
            state = Progress(
                self.step,
                t.steps,
                loss,
                t.rate(self.step - 1),
                norm,
                tokens / seconds,
                speed / self.peak,
                self.last_validation,
                self.per_character(self.last_validation),
                self.best,
            )
            if self.step % t.log_every == 0 or self.step == t.steps:
                self._log(
                    loss=state.loss,
                    learning_rate=state.learning_rate,
                    gradient_norm=state.gradient_norm,
                    tokens_per_second=state.tokens_per_second,
                    mfu=state.mfu,
                )
            progress(state)
            if self.step % t.evaluate_every == 0 or self.step == t.steps or stopped:
                self.save()
        return Training(self.settings.out, self.step, self.best, self.per_character(self.best), self.best_step, stopped)

    def optimize(self, stop: bool) -> tuple[float, float, bool]:
        """One step; its loss, the norm of its gradient, and whether any process wants to stop."""
        t, where = self.settings.train, self.where
        for group in self.optimizer.param_groups:
            group["lr"] = t.rate(self.step)
        # Dropout's numbers are the step's own: nothing of the generators has to be saved.
        torch.manual_seed(((t.seed + 1) << 32) + self.step * where.world + where.rank)
        self.model.train()
        share = t.batch_size // where.world
        total = 0.0
        for i in range(t.accumulate):
            first = (self.step * t.accumulate + i) * t.batch_size + where.rank * share
            tokens, targets = self.windows.batch(first, share)
            last = i == t.accumulate - 1
            with contextlib.nullcontext() if last or where.world == 1 else self.computed.no_sync():
                with where.autocast():
                    loss = self.computed(self._tensor(tokens), self._tensor(targets)).mean()
                (loss / t.accumulate).backward()
            total += loss.item() / t.accumulate
        norm = nn.utils.clip_grad_norm_(self.trained, t.clip or math.inf).item()
        loss_sum, wishes = where.sum([total, float(stop)])
        if not math.isfinite(loss_sum):
            raise RuntimeError(f"the loss of step {self.step} is {loss_sum}: try a lower learning rate")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average:
            with torch.no_grad():
                decay = min(t.average, self.step / (10 + self.step))
                torch._foreach_lerp_(self.average, cast("list[Tensor]", self.trained), 1 - decay)
        return loss_sum / where.world, norm, wishes > 0

    def evaluate(self) -> None:
        """Validation loss; the model is kept if it is the best. Without validation data the last is the best."""
        if not self.validation:
            self.best_step = self.step
            self.save_best()
            return
        with self.averaged():
            self.last_validation = self._validation_loss()
        if self.last_validation < self.best:
            self.best, self.best_step = self.last_validation, self.step
            self.save_best()
        self._log(
            validation_loss=self.last_validation,
            validation_nats_per_character=self.per_character(self.last_validation),
            best_validation_loss=self.best,
        )

    @torch.no_grad()
    def _validation_loss(self) -> float:
        self.model.eval()
        nats, count, share = 0.0, 0, max(1, self.settings.train.batch_size // self.where.world)
        own = self.validation[self.where.rank :: self.where.world]
        for start in range(0, len(own), share):
            for batch in _same_lengths(own[start : start + share]):
                tokens, targets = (
                    torch.stack([torch.from_numpy(row.astype("int64")) for row in rows]) for rows in batch
                )
                with self.where.autocast():
                    losses = self.model(tokens.to(self.where.device), targets.to(self.where.device))
                nats += losses.double().sum().item()
                count += targets.numel()
        nats_sum, tokens_sum = self.where.sum([nats, float(count)])
        return nats_sum / tokens_sum

    def per_character(self, nats: float) -> float:
        """Nats a token of the validation text as nats a character."""
        characters = self.dataset.characters("validation")
        return nats * self.dataset.tokens("validation") / characters if characters else math.nan

    def _tensor(self, rows: Any) -> Tensor:
        return torch.from_numpy(rows.copy()).to(self.where.device, non_blocking=True)

    def _log(self, **metrics: float) -> None:
        if self.where.first:
            self.folder.log({"step": self.step, **metrics})
            for name, value in metrics.items() if self.writer else ():
                cast(Writer, self.writer).add_scalar(name, value, self.step)

    def _tensorboard(self) -> Writer | None:
        if not (self.settings.train.tensorboard and self.where.first):
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("train.tensorboard: the package tensorboard is not installed") from None
        return cast(Writer, SummaryWriter(str(self.folder.path / "tensorboard")))


def groups(parameters: Iterable[nn.Parameter], t: TrainSettings) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors without."""
    every = list(parameters)
    return [
        {"params": [p for p in every if p.dim() > 1], "weight_decay": t.weight_decay},
        {"params": [p for p in every if p.dim() <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def _copy(to: Iterable[Tensor], source: Iterable[Tensor]) -> None:
    for parameter, value in zip(to, source, strict=True):
        parameter.copy_(value)


def _same_lengths(windows: list[tuple[Any, Any]]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Windows as batches of equal lengths: the last of a shard is shorter."""
    by_length: dict[int, list[tuple[Any, Any]]] = {}
    for window in windows:
        by_length.setdefault(len(window[0]), []).append(window)
    for batch in by_length.values():
        yield [tokens for tokens, _ in batch], [targets for _, targets in batch]
