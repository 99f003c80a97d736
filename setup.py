"""Compiles what a gateway does for each request, where that is asked for: `HEADFRAME_COMPILE=1 pip install .` (rfd/0009-a-compiled-gateway.md). All else is in pyproject.toml."""

import os
import shutil
import sys
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
WANTED = os.environ.get("HEADFRAME_COMPILE") == "1"
MYPY = ["--ignore-missing-imports", "--follow-imports=silent", "--allow-untyped-calls", "--warn-unreachable"]


def extensions() -> list:
    """The modules as C extensions; asked for by the steps of a build that make them, not by those that only read metadata."""
    if not WANTED or not {"build", "bdist_wheel"} & set(sys.argv):
        return []
    from mypyc.build import mypycify

    for left in ROOT.glob("build/lib*"):
        shutil.rmtree(left)  # setuptools packs what lies there, also what an earlier build made of other sources
    modules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["headframe"]["compiled"]
    return mypycify([*MYPY, *modules], opt_level="1", debug_level="0", group_name="headframe_gateway")


if WANTED and {"editable_wheel", "develop"} & set(sys.argv):
    sys.exit("HEADFRAME_COMPILE is for `pip install .`: an editable installation would go on running what was compiled after its source has changed")
setup(ext_modules=extensions(), setup_requires=["mypy>=1.19"] if WANTED else [])
