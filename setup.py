"""The repository root is the package ``locap``; everything else is declared in pyproject.toml.

``LOCAP_BUILD_OPS="cpu cuda"`` compiles kernels into the package; without it they are compiled at their first use.
"""

import importlib.util
import os
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

OPS = "ops/ms_deform_attn"
KINDS = os.environ.get("LOCAP_BUILD_OPS", "").replace(",", " ").split()
PARTS = ["datasets*", "evaluation*", "inference*", "modeling*", "ops*", "trainer*", "utils*"]


class BuildPackage(build_py):
    """Leave this file, which lies in the package's folder, out of the package; compile what is asked for into it."""

    def run(self):
        super().run()
        here = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location("build_ops", here / OPS / "build.py")
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        target = here if self.editable_mode else Path(self.build_lib, "locap")
        for kind in KINDS:
            build.into_package(kind, target / OPS)

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[:2] != ("locap", "setup")]


class BinaryDistribution(Distribution):
    """Compiled kernels make the wheel one of its platform."""

    def has_ext_modules(self):
        return bool(KINDS)


setup(
    distclass=BinaryDistribution,
    cmdclass={"build_py": BuildPackage},
    package_dir={"locap": "."},
    packages=["locap"] + [f"locap.{name}" for name in find_packages(include=PARTS)],
    package_data={
        "locap": [
            "configs/**/*.yaml",
            "ops/**/*.cpp",
            "ops/**/*.cu",
            "ops/**/*.cuh",
            "ops/**/*.h",
            "datasets/**/*.txt",
            "datasets/**/*.json",
            "py.typed",
        ]
    },
)
