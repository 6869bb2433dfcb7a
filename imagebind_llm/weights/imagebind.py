"""ImageBind weights in: the public `imagebind_huge.pth`, ImageBind-LLM's variant of it, or safetensors.

The public file is a flat state dict of 1311 float32 tensors. ImageBind-LLM ships one with a point-cloud tower added, whose
entries are ignored by name; anything else that is missing, surplus or of another shape is an error that lists it.
"""

import hashlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from imagebind_llm.config import ENCODERS
from imagebind_llm.encoder import ImageBind
from imagebind_llm.weights.files import TensorFile, WeightsError
from imagebind_llm.weights.llama_checkpoint import check_tensors

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"  # of the repository, wherever the command is typed
SCALE = ".log_logit_scale"  # stays float32: bfloat16 would turn the factor 20 into 20.09
IGNORED_PREFIXES = ("point_trunk.", "modality_heads.point.", "modality_postprocessors.point.", "modality_preprocessors.point.")


def find_imagebind(preset: str, given: str, folder: Path = CHECKPOINTS) -> Path:
    """The weight file to use: `given`, or PRESET.pth / PRESET.safetensors in checkpoints/. Raises WeightsError if absent."""
    candidates = [Path(given)] if given else [folder / f"{preset}{ending}" for ending in (".safetensors", ".pth")]
    for path in candidates:
        if path.is_file():
            return path
    if given:
        raise WeightsError(f"--encoder_weights {given}: expected a .safetensors or .pth file, got {_what_is(candidates[0])}")
    raise WeightsError(
        f"no weights of {preset}: looked for {' and '.join(map(str, candidates))}. Give the file by --encoder_weights "
        f"(checkpoints/README.md says where each comes from), or try things out with --encoder imagebind_tiny"
    )


def _what_is(path: Path) -> str:
    return "a folder" if path.is_dir() else "no such file"


def load_imagebind(
    path: Path, preset: str, dtype: torch.dtype = torch.float32, towers: Collection[str] | None = None
) -> ImageBind:
    """The frozen towers in evaluation mode, strictly loaded. Raises WeightsError for a file of another architecture.

    `towers`: read these alone (the text tower is 354 of 1,201 million parameters); None: all.
    """
    config = ENCODERS[preset]()
    wanted_towers = set(config.towers) if towers is None else set(towers)
    config = replace(config, towers={name: tower for name, tower in config.towers.items() if name in wanted_towers})
    with torch.device("meta"):
        model = ImageBind(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    file = TensorFile(path)
    found = {
        name: shape
        for name, shape in file.shapes.items()
        if not name.startswith(IGNORED_PREFIXES) and (towers is None or name.split(".")[1] in wanted_towers)
    }
    see = f"see what it is: python -m imagebind_llm.weights check {path}"
    check_tensors(path, found, wanted, what=preset, advice=see)
    kinds = {name: torch.float32 if name.endswith(SCALE) else dtype for name in wanted}
    model.load_state_dict({name: file.read(name).to(kind, copy=True) for name, kind in kinds.items()}, assign=True)
    return model.eval().requires_grad_(False)


def file_sha256(path: Path) -> str:
    """Fingerprint of a weight file, for the store's identity."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
