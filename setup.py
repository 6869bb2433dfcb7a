"""Packaging of ITSL: `pip install -e .[dev]`, or simply `make setup`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "imagebind_llm" / "__init__.py").read_text()).group(1)
REQUIREMENTS = [
    line.strip() for line in (HERE / "requirements.txt").read_text().splitlines() if line.strip() and not line.startswith("#")
]
OPENAI = "openai>=1.40"
GRADIO = "gradio>=6.31,<7"

setup(
    name="itsl",
    version=VERSION,
    description="Explainable multimodal intent recognition: ImageBind, LLaMA and self-critical instruction tuning",
    author="ITSL contributors",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["imagebind_llm", "imagebind_llm.*"]),
    package_data={"imagebind_llm.encoder": ["vocabulary/*"]},
    install_requires=REQUIREMENTS,
    extras_require={
        # accelerate: transformers' GGUF loader, the oracle for ours; peft: the peer of benchmark.py
        "dev": [
            *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "ruff>=0.6", "mypy>=1.11", "accelerate>=1", "peft>=0.15"),
            OPENAI,
            GRADIO,
        ],
        "demo": [GRADIO],  # web_demo.py
        "rationales": [OPENAI],  # write_rationales.py
        # independent oracles in tests, where a build for this machine can be imported; the main path never needs them
        "vision": ["torchvision"],
        "audio": ["torchaudio"],
    },
)
