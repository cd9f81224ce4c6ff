"""What pyproject.toml cannot say: MULTIRAFT_COMPILE=1 builds machine code. See building/compiling.py."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "building"))

from compiling import BuildCompiled, CompiledDistribution, wanted

if wanted():
    setup(distclass=CompiledDistribution, cmdclass={"build_ext": BuildCompiled})
else:
    setup()
