"""Where a run computes: device, precision, processes, and the speed that a product of matrices reaches there."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from llama2c.training.settings import TrainSettings

_PROBE = 2048  # rows, columns and depth of the probed product; a quarter of them on a CPU


@dataclass(frozen=True)
class Hardware:
    """The device of this process, and its place among the processes that torchrun has started."""

    device: torch.device
    bf16: bool  # products take bf16, by autocast
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def precision(self) -> str:
        """Of products."""
        return "bf16" if self.bf16 else "f32"

    def autocast(self) -> torch.autocast:
        """Within it, products are computed in the precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def sum(self, values: list[float]) -> list[float]:
        """The sums over all processes."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        sums: list[float] = tensor.tolist()
        return sums

    def wait(self) -> None:
        """For all processes."""
        if self.world > 1:
            dist.barrier()

    def peak_flops(self) -> float:
        """Floating-point operations a second of a large product in the precision: the best of a few, all processes."""
        size = _PROBE if self.device.type == "cuda" else _PROBE // 4
        kind = torch.bfloat16 if self.bf16 else torch.float32
        a = torch.ones(size, size, dtype=kind, device=self.device)
        best = min(self._seconds(a) for _ in range(8))
        return 2.0 * size**3 / best * self.world

    def _seconds(self, a: Tensor) -> float:
        self._synchronize()
        begun = time.perf_counter()
        torch.mm(a, a)
        self._synchronize()
        return time.perf_counter() - begun

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextlib.contextmanager
def hardware(settings: TrainSettings) -> Iterator[Hardware]:
    """What the settings and torchrun's environment say, for the time of a `with`. Raises ValueError."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled for CUDA
        raise ValueError(f"device {settings.device}: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {settings.device!r}, expected auto, cpu or cuda")
    if settings.threads and device.type == "cpu":
        torch.set_num_threads(settings.threads)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and _multiplies_bf16(device))
    if world > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Hardware(device, bf16, rank, world)
    finally:
        if world > 1:
            dist.destroy_process_group()


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bf16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
