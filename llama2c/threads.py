"""How many threads a step uses unless told: OMP_NUM_THREADS, else the cores that this process may run on.

On Linux they are the physical cores within the process's affinity and its CPU quota; elsewhere, where the standard
library tells neither, all processors.
"""

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def default_threads() -> int:
    """OMP_NUM_THREADS if it is a positive number, else physical cores within affinity and CPU quota."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return max(1, min(_physical_cores(), _quota()))


def _physical_cores() -> int:
    # Two hardware threads of a core share its units: a second one adds barriers, not speed.
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        try:
            cores.add((_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            return len(allowed)
    return len(cores)


def _quota() -> int:
    """Whole processors that a container's CPU quota allows."""
    try:
        limit, period = _CGROUP_LIMIT.read_text().split()
        return int(int(limit) / int(period) + 0.5) or 1
    except (OSError, ValueError):  # no such file; "max": no limit
        return os.cpu_count() or 1
