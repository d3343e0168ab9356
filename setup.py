"""The repository root is the package ``locap``; everything else is declared in pyproject.toml."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PARTS = ["datasets*", "evaluation*", "inference*", "modeling*", "ops*", "trainer*", "utils*"]


class BuildPackage(build_py):
    """Leave this file, which lies in the package's folder, out of the package."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[:2] != ("locap", "setup")]


setup(
    cmdclass={"build_py": BuildPackage},
    package_dir={"locap": "."},
    packages=["locap"] + [f"locap.{name}" for name in find_packages(include=PARTS)],
    package_data={
        "locap": [
            "configs/**/*.yaml",
            "ops/**/*.cpp",
            "ops/**/*.cu",
            "ops/**/*.h",
            "datasets/**/*.txt",
            "datasets/**/*.json",
            "py.typed",
        ]
    },
)
