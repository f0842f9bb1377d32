"""What pyproject.toml cannot say: configs/ and checkpoints/ of the checkout become folders of the installed package.

`face2scene.common.shipped` finds them in either place. Of checkpoints/ only what a command reads goes along.
"""

from setuptools import find_packages, setup

SHIPPED = {"face2scene.configs": "configs", "face2scene.checkpoints": "checkpoints"}

setup(
    packages=[*find_packages(include=["face2scene", "face2scene.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "face2scene": ["py.typed"],
        "face2scene.assets": ["catalogue.yaml"],
        "face2scene.cli": ["examples/*"],
        "face2scene.data.building": ["packs/*.yaml"],
        "face2scene.data.sources": ["celebref_validation.txt"],
        "face2scene.common": ["templates/*"],
        "face2scene.eval.scoring": ["results.schema.json"],
        "face2scene.configs": ["**/*.yaml"],
        "face2scene.checkpoints": [
            *("README.md", "photo/*.*", "tiny/*.*", "tiny/base/**/*"),
            *("fadex/README.md", "fadex/*.safetensors"),
        ],
    },
)
