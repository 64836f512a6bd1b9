"""Builds llama2c._core: the C core, as csrc/build.py tells, and the Cython module over it.

Environment: LLAMA2C_NO_OPENMP=1; LLAMA2C_SANITIZE=1: with ASan and UBSan; LLAMA2C_STRICT=1:
warnings in the C core are errors; LLAMA2C_EMULATE=amx: that level's instructions as C functions, for
tests; LLAMA2C_OBJECTS=DIR: the core's objects go there and stay, for csrc/build.py; LLAMA2C_MACHINE=aarch64:
the architecture to compile for, if neither ARCHFLAGS nor the interpreter knows it. All that needs no
code is in pyproject.toml.
"""

import atexit
import glob
import importlib.util
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext  # Cython's, where Cython is installed
from setuptools.errors import CompileError, LinkError

# By path: the name `build` belongs to a package that may be installed.
spec = importlib.util.spec_from_file_location("csrc_build", Path(__file__).with_name("csrc") / "build.py")
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)

# Free-threaded Python has no stable ABI: there the module serves one version only.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildCore(build_ext):
    """Compiles the core's files, each with its own flags, and links them into the extension.

    setuptools knows flags only by extension or static library, and static libraries that need one
    another in a circle link by luck; so the objects are handed over as they are.
    """

    def initialize_options(self) -> None:
        super().initialize_options()
        self.cython_c_in_temp = True
        self.cython_directives = {
            "language_level": "3",
            "binding": True,
            "embedsignature": True,
            "freethreading_compatible": True,
        }

    def finalize_options(self) -> None:
        super().finalize_options()
        # setuptools looks at the age of files, not at the options they were compiled with.
        self.force = True

    def build_extension(self, ext: Extension) -> None:
        options = core.Options.from_environment(msvc=self.compiler.compiler_type == "msvc")
        openmp, link_openmp = core.find_openmp(options, self.links)

        folder = os.environ.get("LLAMA2C_OBJECTS") or self.build_temp

        def compile_unit(unit: core.Unit) -> str:
            sources = [os.path.relpath(unit.source)]
            return self.compiler.compile(sources, folder, extra_postargs=unit.flags)[0]

        levels = core.usable_levels(core.target_machine(), options, self.links)
        units = core.units(levels, options, openmp)
        ext.extra_objects = core.in_parallel(compile_unit, units)
        ext.extra_compile_args = options.compile_flags()
        ext.extra_link_args = [*options.link_flags(), *link_openmp]
        super().build_extension(ext)

    def links(self, source: str, compile_flags: Sequence[str], link_flags: Sequence[str]) -> bool:
        folder = self.build_temp
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe = Path(folder, "probe.c")
        probe.write_text(source)
        try:
            objects = self.compiler.compile([str(probe)], folder, extra_postargs=[*compile_flags])
            self.compiler.link_executable(objects, "probe", folder, extra_postargs=[*link_flags])
        except (CompileError, LinkError):
            return False
        return True


# Nothing is left in the checkout: what an earlier build put into ./build, modules since removed for one, would go into
# later wheels.
BUILD = tempfile.mkdtemp(prefix="llama2c-build-")
atexit.register(shutil.rmtree, BUILD, ignore_errors=True)

# macOS interpreters may be built for two architectures; the kernels are compiled for one.
if sysconfig.get_platform().endswith("universal2"):
    os.environ.setdefault("ARCHFLAGS", f"-arch {os.uname().machine}")

setup(
    ext_modules=[
        Extension(
            "llama2c._core",
            ["llama2c/_core.pyx"],
            include_dirs=["csrc"],
            depends=["llama2c/_core.pxd", *sorted(glob.glob("llama2c/_core_*.pxi")), *sorted(glob.glob("csrc/*.[ch]"))],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if STABLE_ABI else [],
            py_limited_api=STABLE_ABI,
        )
    ],
    cmdclass={"build_ext": BuildCore},
    options={
        "build": {"build_base": BUILD},
        "egg_info": {"egg_base": BUILD},
        "bdist_wheel": {"py_limited_api": "cp311"} if STABLE_ABI else {},
    },
)
