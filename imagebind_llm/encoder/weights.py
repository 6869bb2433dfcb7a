"""Reads ImageBind's weights: the public `imagebind_huge.pth`, ImageBind-LLM's variant of it, or safetensors.

The public file is a flat state dict of 1311 float32 tensors. ImageBind-LLM's file has an additional point-cloud tower, which is
ignored; all other missing or additional tensors and other shapes are errors.
"""

import hashlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from imagebind_llm.config import IMAGEBIND_PRESETS, MODALITIES, ImageBindConfig
from imagebind_llm.encoder.towers import ImageBind
from imagebind_llm.weight_files import TensorFile, WeightsError, check_tensors

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"  # of the repository, wherever the command is typed
SCALE = ".log_logit_scale"  # stays float32: bfloat16 would turn the factor 20 into 20.09
IGNORED_PREFIXES = ("point_trunk.", "modality_heads.point.", "modality_postprocessors.point.", "modality_preprocessors.point.")


def find_weights(encoder: str, given: str = "") -> Path:
    """The weight file: `given` or, if that is "", ENCODER.safetensors or .pth in checkpoints/.

    Raises WeightsError if it does not exist.
    """
    candidates = [Path(given)] if given else [CHECKPOINTS / f"{encoder}{ending}" for ending in (".safetensors", ".pth")]
    for path in candidates:
        if path.is_file():
            return path
    if given:
        got = "a folder" if Path(given).is_dir() else "no such file"
        raise WeightsError(f"--encoder_weights {given}: expected a .safetensors or .pth file, got {got}")
    raise WeightsError(
        f"no weights of {encoder}: looked for {' and '.join(map(str, candidates))}. Give the file by --encoder_weights "
        f"(checkpoints/README.md says where each comes from), or try things out with --encoder imagebind_tiny"
    )


def load_imagebind(
    path: Path,
    preset: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    towers: Collection[str] = MODALITIES,
) -> ImageBind:
    """Load `towers`, frozen and in evaluation mode, to `device`. Raises WeightsError unless the file has exactly the preset's
    tensors.

    Tensors are moved to the device one by one, so that the ranks of a machine need no copy each in its memory. Of other towers
    only names and shapes are checked.
    """
    whole = IMAGEBIND_PRESETS[preset]()
    file = TensorFile(path)
    shapes = {name: shape for name, shape in file.shapes.items() if not name.startswith(IGNORED_PREFIXES)}
    expected = {name: tuple(tensor.shape) for name, tensor in _on_meta(whole).state_dict().items()}
    advice = f"see what it is: python -m imagebind_llm.check {path}"
    check_tensors(path, shapes, expected, what=preset, advice=advice)
    model = _on_meta(replace(whole, towers={name: tower for name, tower in whole.towers.items() if name in towers}))
    kinds = {name: torch.float32 if name.endswith(SCALE) else dtype for name in model.state_dict()}
    state = {name: file.read(name).to(device, kind, copy=True) for name, kind in kinds.items()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _on_meta(config: ImageBindConfig) -> ImageBind:
    """Towers on the meta device, without memory."""
    with torch.device("meta"):
        return ImageBind(config)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
