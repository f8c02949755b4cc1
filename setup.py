"""What pyproject.toml has no words for: the folder `configs` at the top goes into wheels, as `edgeprune/_configs`."""

from setuptools import find_namespace_packages, find_packages, setup

CONFIGS = "edgeprune._configs"
setup(
    packages=[
        *find_packages(include=["edgeprune*", "lit_modules*", "datamodules*"]),
        *(CONFIGS, *(f"{CONFIGS}.{folder}" for folder in find_namespace_packages("configs"))),
    ],
    package_dir={CONFIGS: "configs"},
)
