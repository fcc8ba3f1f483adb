"""What pyproject.toml cannot say: the kernels in C are built where there is a compiler, else left out."""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

SOURCES = {
    "consortium.codecs._codecs": "consortium/codecs/codecs.c",
    "consortium.merging.kernels._kernels": "consortium/merging/kernels/kernels.c",
}


def digest(source: str) -> str:
    return hashlib.sha256((Path(__file__).parent / source).read_bytes()).hexdigest()


setup(
    ext_modules=[
        Extension(  # without Python.h: a plain library that consortium.libraries loads
            name,
            [source],
            define_macros=[("KERNELS_SOURCE", f'"{digest(source)}"')],
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
        for name, source in SOURCES.items()
    ]
)
