"""How the C core is compiled, told once: setup.py, the tests and CI take files and flags from here.

As a command it compiles the core and, for each C file given that has a main(), links both to a program:

    python csrc/build.py --cc clang --strict
    python csrc/build.py --main tests/c/checkkernels.c --out build/check --sanitize
    python csrc/build.py --cc aarch64-linux-gnu-gcc --main tests/c/checkkernels.c --out build/check
    python csrc/build.py --emulate amx --main tests/c/checktiles.c --out build/check
    python csrc/build.py --objects build/core --main tests/c/checkteam.c --out build/check

Only kernels_<level>.c may use instructions beyond the architecture's baseline, and cpu.c calls a
level only where the processor runs it. Nothing depends on the machine that builds.
"""

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

CSRC = Path(__file__).resolve().parent

Object = TypeVar("Object")
# Whether a program in C can be built with such compiler and linker flags.
Links = Callable[[str, Sequence[str], Sequence[str]], bool]

# ---- The table ----


class Level(NamedTuple):
    """An instruction-set level: kernels_<name>.c, L2C_HAVE_<NAME>, and the flags of that file.

    system: the one sys.platform that has the level. Young levels are left out where the compiler
    does not know their flags.
    """

    name: str
    gnu: tuple[str, ...] = ()
    msvc: tuple[str, ...] = ()
    system: str | None = None
    young: bool = False


AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
AVX512VNNI = (*AVX512, "-mavx512vnni")
AMX = (*AVX512VNNI, "-mbmi2", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8")

# By architecture, lowest first, on top of kernels_scalar.c, which every machine has.
LEVELS = {
    "x86_64": (
        Level("avx2", AVX2, ("/arch:AVX2",)),
        Level("avxvnni", (*AVX2, "-mavxvnni"), ("/arch:AVX2",), young=True),  # gcc 11, clang 12
        Level("avx512", AVX512, ("/arch:AVX512",)),
        Level("avx512vnni", AVX512VNNI, ("/arch:AVX512",)),
        Level("amx", AMX, system="linux", young=True),  # gcc 11, clang 12
    ),
    "aarch64": (
        Level("neon"),
        Level("dotprod", ("-march=armv8.2-a+dotprod",)),
    ),
}
OTHER_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}

# Levels whose instructions C functions can stand for, tests/c/emulate_<level>.[ch]: the header
# goes before the level's file, and both are compiled with these flags.
EMULATED = {"amx": (*AVX512VNNI, "-mbmi2")}

# No contraction: the levels agree bit for bit, so every fused multiply-add is written as one.
# -g0: setuptools puts the interpreter's own flags first, they often hold -g, and debug information
# would triple the wheel.
GNU = ("-std=c11", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden")
MSVC = ("/std:c11", "/experimental:c11atomics", "/O2", "/fp:precise", "/D_CRT_SECURE_NO_WARNINGS")
# -Og: GCC compiles kernels and the Cython module in less than half of -O1's time, and they run as fast.
SANITIZE = (
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    *("-fno-omit-frame-pointer", "-g1", "-Og"),
)
SANITIZED_REST = ("-O2",)  # the core's files without kernels, which are quick to compile
LINK = ("-lm", "-pthread")
WARNINGS = (
    *("-Wall", "-Wextra", "-Wshadow", "-Wvla", "-Wundef", "-Wpointer-arith", "-Wwrite-strings"),
    *("-Wstrict-prototypes", "-Wmissing-prototypes", "-Wold-style-definition"),
    *("-Wconversion", "-Wsign-conversion"),
)

# By platform, (compiler flags, linker flags) to try in turn. Apple's clang has no runtime for
# OpenMP; Homebrew's lies outside the search path.
LIBOMP = "/opt/homebrew/opt/libomp"
OPENMP = {
    "linux": ((("-fopenmp",), ("-fopenmp",)),),
    "darwin": (
        (("-fopenmp",), ("-fopenmp",)),
        (("-Xpreprocessor", "-fopenmp", f"-I{LIBOMP}/include"), (f"-L{LIBOMP}/lib", "-lomp")),
    ),
    "win32": ((("/openmp",), ()),),
}
EMPTY = "int main(void) { return 0; }"
OPENMP_PROBE = """
#include <omp.h>
int main(void) {
    int n = 0;
#pragma omp parallel reduction(+ : n)
    n += omp_get_num_threads();
    return n == 0;
}
"""

# ---- From the table to compiler calls ----


@dataclass(frozen=True)
class Options:
    """The choices in a build."""

    openmp: bool = True
    sanitize: bool = False
    strict: bool = False
    msvc: bool = False
    emulate: str | None = None  # a level of EMULATED: it runs where its flags there do
    levels: tuple[str, ...] | None = None  # those above scalar to build; None: all
    kernels: bool = True  # False: none, for programs that compute nothing and define l2c_kernels_scalar

    @classmethod
    def from_environment(cls, *, msvc: bool) -> "Options":
        """LLAMA2C_NO_OPENMP, _SANITIZE, _STRICT, _EMULATE and _LEVELS, as setup.py has no command line of its own."""

        def is_set(name: str) -> bool:
            return os.environ.get(f"LLAMA2C_{name}", "") not in ("", "0")

        emulate = os.environ.get("LLAMA2C_EMULATE") or None
        levels = tuple(os.environ["LLAMA2C_LEVELS"].split(",")) if is_set("LEVELS") else None
        return cls(not is_set("NO_OPENMP"), is_set("SANITIZE"), is_set("STRICT"), msvc, emulate, levels)

    def compile_flags(self) -> list[str]:
        """For every C file, the generated one included."""
        return list(MSVC) if self.msvc else [*GNU, *(SANITIZE if self.sanitize else ())]

    def link_flags(self) -> list[str]:
        return [] if self.msvc else [*LINK, *(SANITIZE if self.sanitize else ())]


class Unit(NamedTuple):
    """A C file with all its flags."""

    source: Path
    flags: list[str]


def canonical(machine: str) -> str:
    return OTHER_NAMES.get(machine.lower(), machine.lower())


def target_machine() -> str:
    """The architecture that extensions for this Python are compiled for."""
    given = os.environ.get("LLAMA2C_MACHINE")
    archs = set(os.environ.get("ARCHFLAGS", "").split()) - {"-arch"}  # macOS, e.g. "-arch arm64"
    if len(archs) > 1:
        sys.exit(f"llama2c is built for one architecture at a time, ARCHFLAGS asks for {archs}")
    own = sysconfig.get_platform().rpartition("-")[2]  # of linux-x86_64, macosx-11.0-arm64, ...
    return canonical(given or (archs or {own}).pop())


def usable_levels(machine: str, options: Options, links: Links) -> list[Level]:
    """The levels above scalar that this system has and this compiler knows."""
    levels = []
    names = ["scalar", *(level.name for level in LEVELS.get(machine, ()))]
    unknown = [name for name in options.levels or () if name not in names]
    if unknown:
        sys.exit(f"llama2c: no level {unknown[0]!r} to build for {machine}: there are {', '.join(names)}")
    for level in LEVELS.get(machine, ()):
        if not options.kernels or (options.levels is not None and level.name not in options.levels):
            continue
        if level.name == options.emulate:
            header = CSRC.parent / "tests" / "c" / f"emulate_{level.name}.h"
            levels.append(level._replace(gnu=(*EMULATED[level.name], "-include", str(header))))
        elif level.system not in (None, sys.platform):
            continue
        elif level.young and not links(EMPTY, level.gnu, ()):
            print(f"llama2c: the compiler does not know {' '.join(level.gnu)}: no level {level.name}", file=sys.stderr)
        else:
            levels.append(level)
    return levels


def units(
    levels: Sequence[Level], options: Options, openmp_flags: Sequence[str], more: Sequence[Path] = ()
) -> list[Unit]:
    """Every C file of the core and `more`, the slowest first; only ops.c gets the OpenMP flags."""
    own = {f"kernels_{level.name}.c": level.msvc if options.msvc else level.gnu for level in levels}
    if options.kernels:
        own["kernels_scalar.c"] = ()
    others = sorted(path.name for path in CSRC.glob("*.c") if not path.name.startswith("kernels_"))
    paths = [*(CSRC / name for name in (*own, *others)), *more]
    own |= dict.fromkeys(others, SANITIZED_REST if options.sanitize and not options.msvc else ())
    own["ops.c"] += tuple(openmp_flags)
    if options.emulate:
        paths.append(CSRC.parent / "tests" / "c" / f"emulate_{options.emulate}.c")
        own[paths[-1].name] = EMULATED[options.emulate]

    shared = options.compile_flags() + [f"-DL2C_HAVE_{level.name.upper()}=1" for level in levels]
    shared += [f"-DL2C_EMULATE_{options.emulate.upper()}=1"] if options.emulate else []
    if options.strict and not options.msvc:
        shared += [*WARNINGS, "-Werror"]
    return [Unit(path, [*shared, *own.get(path.name, ())]) for path in paths]


def find_openmp(options: Options, links: Links) -> tuple[list[str], list[str]]:
    """Compiler and linker flags of OpenMP, empty without."""
    if options.openmp:
        for compile_flags, link_flags in OPENMP.get(sys.platform, ()):
            if links(OPENMP_PROBE, compile_flags, link_flags):
                return list(compile_flags), list(link_flags)
        print("llama2c: the compiler has no OpenMP: the core will use one thread", file=sys.stderr)
    return [], []


def in_parallel(compile_unit: Callable[[Unit], Object], todo: Sequence[Unit]) -> list[Object]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_unit, todo))


# ---- The command: a GNU-like compiler, called directly ----


def run(*command: object, quiet: bool = False) -> bool:
    words = [str(word) for word in command]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.stderr and not quiet:
        print(shlex.join(words), result.stderr, sep="\n", file=sys.stderr)
    return result.returncode == 0


def build(
    options: Options,
    cc: str,
    machine: str,
    extra: Sequence[str],
    programs: Mapping[Path, Path] = {},
    objects: Path | None = None,
) -> bool:
    """Compile the core and link it with each file of `programs` that has a main() to the program there.

    What setup.py has left in `objects` is taken as it is. False if the compiler refused something; it has said why.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        probe = folder / "probe.c"

        def links(source: str, compile_flags: Sequence[str], link_flags: Sequence[str]) -> bool:
            program = folder / "probe"
            probe.write_text(source)
            return run(cc, *compile_flags, probe, "-o", program, *link_flags, quiet=True)

        def compile_unit(unit: Unit) -> Path | None:
            name = f"{unit.source.stem}.o"
            if objects and unit.source not in programs:
                return objects / CSRC.name / name
            target = folder / name
            done = run(cc, *unit.flags, *extra, f"-I{CSRC}", "-c", unit.source, "-o", target)
            return target if done else None

        compile_openmp, link_openmp = find_openmp(options, links)
        levels = usable_levels(machine, options, links)
        todo = units(levels, options, compile_openmp, list(programs))
        compiled = dict(zip((unit.source for unit in todo), in_parallel(compile_unit, todo), strict=True))
        if None in compiled.values():
            return False
        link_flags = [*extra, *options.link_flags(), *link_openmp]
        core = [target for source, target in compiled.items() if source not in programs]
        return all(run(cc, compiled[main], *core, *link_flags, "-o", out) for main, out in programs.items())


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the C core, alone or into a program.")
    parser.add_argument("--cc", default=os.environ.get("CC", "cc"), help="default: $CC, else cc")
    parser.add_argument("--machine", help="architecture, e.g. aarch64; default: the compiler's")
    parser.add_argument("--main", type=Path, action="append", default=[], help="C file that has the main function")
    parser.add_argument("--out", type=Path, action="append", default=[], help="program to write, for each --main")
    parser.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    parser.add_argument("--strict", action="store_true", help="all warnings, as errors")
    parser.add_argument("--no-openmp", action="store_true")
    parser.add_argument("--emulate", choices=EMULATED, metavar="LEVEL", help="its instructions as C functions: amx")
    parser.add_argument("--levels", metavar="NAME,...", help="instruction-set levels above scalar (default: all)")
    parser.add_argument("--objects", type=Path, metavar="DIR", help="what setup.py compiled: its LLAMA2C_OBJECTS")
    parser.add_argument("--no-kernels", action="store_true", help="for programs that define l2c_kernels_scalar")
    parser.add_argument("flags", nargs="*", help="more compiler and linker flags, after --")
    given = parser.parse_args()
    if len(given.main) != len(given.out):
        parser.error("--main and --out belong together")
    machine = given.machine
    if machine is None:
        triplet = subprocess.check_output([given.cc, "-dumpmachine"], text=True)
        machine = triplet.partition("-")[0]
    levels = tuple(given.levels.split(",")) if given.levels else None
    if given.objects:  # cpu.o names them all
        levels = tuple(path.stem.removeprefix("kernels_") for path in given.objects.glob("csrc/kernels_*.o"))
    choices = {"emulate": given.emulate, "levels": levels, "kernels": not given.no_kernels}
    options = Options(not given.no_openmp, given.sanitize, given.strict, **choices)
    programs = dict(zip(given.main, given.out, strict=True))
    done = build(options, given.cc, canonical(machine), given.flags, programs, given.objects)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
