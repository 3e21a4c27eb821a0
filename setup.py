"""The native kernels. They are optional: without a C++ compiler everything else is installed all the same.

Wheels that are handed on are built with M7B_REQUIRE_KERNELS=1: then a compiler that fails is an error.
"""

import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "m7b/runtime/kernels/native"
# Each file asks for its own instruction set, and one is picked at run time, so no -march here. Products
# and sums are fused only where the code says so: a result must not depend on the compiler's mood.
# What Python was built with may ask for debug information, which is seven eighths of the file.
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-g0"]
# The kernels have threads of their own and no OpenMP. Until glibc 2.34 these needed a library.
THREADS = ["-pthread"] if sys.platform.startswith("linux") else []
# Python without its lock has no stable ABI.
IS_STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")
# The sources are in the C++ of GCC and Clang, which Microsoft's compiler does not take.
HAS_COMPILER = sys.platform != "win32"


class BuildInParallel(build_ext):
    """Compiles several files of an extension at once."""

    def build_extension(self, extension):
        compile_all = self.compiler.compile

        def compile_each(sources, **named):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_all([source], **named), sources)
            return [name for names in objects for name in names]

        self.compiler.compile = compile_each
        super().build_extension(extension)


NATIVE = Extension(
    "m7b.runtime.kernels._native",
    sources=sorted(glob(f"{FOLDER}/*.cpp")),
    depends=sorted(glob(f"{FOLDER}/*.h")),
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if IS_STABLE else [],
    extra_compile_args=FLAGS + THREADS + os.environ.get("M7B_CXXFLAGS", "").split(),
    extra_link_args=THREADS + os.environ.get("M7B_LDFLAGS", "").split(),
    py_limited_api=IS_STABLE,
    optional=not os.environ.get("M7B_REQUIRE_KERNELS"),
)

setup(
    cmdclass={"build_ext": BuildInParallel},
    ext_modules=[NATIVE] if HAS_COMPILER else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if HAS_COMPILER and IS_STABLE else {},
)
