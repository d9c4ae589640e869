"""doge_ds: learn what mixture of text domains to pretrain on, and pretrain on it, under DeepSpeed."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="doge_ds",
    version="0.1.0",
    description="Domain reweighting with generalization estimation (DoGE) and mixture pretraining under DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["doge_ds", "doge_ds.*"]),
    package_data={"doge_ds": ["published/*.json"], "doge_ds.reporting": ["*.html", "style.css"]},
    python_requires=">=3.11",
    # Ranges; constraints.txt has the versions that are tested together. torch without a local version: whichever build
    # (CUDA, ROCm, CPU) is installed already satisfies it.
    install_requires=[
        "torch>=2.6",
        "deepspeed>=0.19.8,<0.20",  # training/domain_gradients.py reads attributes that DeepSpeed does not promise
        "transformers>=5.0,<6",
        "accelerate>=1.0",  # transformers asks for it wherever it meets a DeepSpeed configuration
        "datasets>=4.0",
        "pyarrow>=18",
        "zstandard>=0.22",
        "sentencepiece>=0.2",
        "tensorboard>=2.16",
        "lm-eval>=0.4.9",
        "huggingface_hub>=1.0",
        "numpy>=1.26",
        "pydantic>=2.7",
        "safetensors>=0.4",
        "tqdm>=4.66",
        "filelock>=3.13",
        "psutil>=5.9",
        "matplotlib>=3.8",  # the report: charts, page, order of the heat map
        "jinja2>=3.1",
        "pyyaml>=6",
        "scipy>=1.11",
    ],
    extras_require={
        "development": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "types-tqdm",
            "jsonschema",
            "markdown-it-py",
        ]
    },
    entry_points={"console_scripts": ["doge-ds=doge_ds.cli:main"]},
)
