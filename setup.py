"""The native kernels. They are optional: without a C++ compiler everything else is installed all the same."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "m7b/runtime/kernels/native"
# Each file asks for its own instruction set, and one is picked at run time, so no -march here. Products
# and sums are fused only where the code says so: a result must not depend on the compiler's mood.
FLAGS = ["/O2", "/std:c++17"] if sys.platform == "win32" else ["-O3", "-std=c++17", "-ffp-contract=off"]


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


setup(
    cmdclass={"build_ext": BuildInParallel},
    ext_modules=[
        Extension(
            "m7b.runtime.kernels._native",
            sources=sorted(glob(f"{FOLDER}/*.cpp")),
            depends=sorted(glob(f"{FOLDER}/*.h")),
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=FLAGS + os.environ.get("M7B_CXXFLAGS", "").split(),
            extra_link_args=os.environ.get("M7B_LDFLAGS", "").split(),
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
