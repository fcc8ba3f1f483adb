"""What pyproject.toml cannot say: the kernels in C are built where there is a compiler, else left out."""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

SOURCE = "consortium/merging/kernels.c"
digest = hashlib.sha256((Path(__file__).parent / SOURCE).read_bytes()).hexdigest()

setup(
    ext_modules=[
        Extension(  # without Python.h: a plain library that native.py loads
            "consortium.merging._kernels",
            [SOURCE],
            define_macros=[("KERNELS_SOURCE", f'"{digest}"')],
            # no -ffast-math, no contraction, no -march: the same bits everywhere, on any machine
            extra_compile_args=[
                "-std=c99",
                "-O3",
                "-ffp-contract=off",
                "-fno-math-errno",
                "-fno-trapping-math",
            ],
            libraries=["m"],
            optional=True,
        )
    ]
)
