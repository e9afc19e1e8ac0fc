"""Package metadata. Ranges here; the tested, pinned environment is requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.findall(r'^VERSION = "(.+)"', (HERE / "safevlm" / "versions.py").read_text(encoding="utf-8"), re.M)[0]

EXTRAS = {
    "train": ["peft>=0.19", "accelerate>=1.10", "deepspeed>=0.18"],
    "quant": ["bitsandbytes>=0.48"],
    "flash": ["flash-attn"],
    "convert": ["sentencepiece"],
    "data": ["pyarrow"],
    "analysis": ["scikit-learn", "matplotlib", "scipy", "pyarrow", "jinja2"],
    "eval": ["jinja2", "openai>=3"],
    "client": ["openai>=3"],
    "serve": ["fastapi>=0.120", "uvicorn>=0.30", "prometheus-client>=0.20", "httpx2>=2.16"],
    "ui": ["gradio>=6.31,<7"],
    "nemo": ["nemoguardrails>=0.24", "httpx2>=2.16"],
    "smolvlm": ["num2words>=0.5"],  # transformers' processor asks for it, for videos
    "otel": ["opentelemetry-api>=1.30", "opentelemetry-sdk>=1.30"],
    "utility": ["lmms-eval>=0.7.3", "filelock<4"],  # lmms-eval 0.7.3 fails on filelock 4, and exits 0
    "pictograms": ["resvg-py>=0.5", "gguf>=0.10"],
    "docs": ["sphinx>=8.2", "furo", "myst-parser>=4"],
    "dev": ["pytest", "pytest-xdist", "ruff", "mypy", "types-PyYAML", "types-tqdm", "hypothesis"],
}
ALONE = ("flash", "utility", "ui", "nemo")
"""Extras that need a compiler and a GPU, bring a harness of their own, or an older Pillow (Gradio) or Hub (NeMo)."""
EXTRAS["all"] = sorted({package for name, packages in EXTRAS.items() if name not in ALONE for package in packages})

DATA = ("yaml", "json", "jsonl", "j2", "css", "js", "html")
"""Endings of the files that the code reads beside itself; tests/test_wheel.py finds one that is left out."""

setup(
    name="safevlm",
    version=VERSION,
    description="Safety modules and defenses for LLaVA-v1.5: training in two stages, evaluation, comparison",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["safevlm", "safevlm.*", "llava_patch", "llava_patch.*"]),
    package_data={"safevlm": ["py.typed", *(f"**/*.{ending}" for ending in DATA)]},
    install_requires=[
        "torch>=2.4",
        "transformers>=5.23",
        "safetensors",
        "pillow>=10.1",
        "pyyaml",
        "pydantic>=2.12",
        "py3langid>=0.4",
        "typing_extensions",
        "tqdm",
        "jsonargparse[signatures]>=4.40",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["safevlm=safevlm.__main__:main"],
        "lmms_eval.models": ["safevlm = safevlm.evaluation.lmms.adapter:manifests"],
    },
)
