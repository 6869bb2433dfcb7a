"""Checkpoint files, opened without trusting them and read one tensor at a time.

`TensorFile` opens .safetensors and PyTorch's .pth/.bin by what is inside, not by the name. The file is mapped, so opening
reads the names and shapes only; the mapping is renewed every 256 MB, so that reading a 13 GB file through it never holds
more than that of it in memory. Unpickling is restricted to tensors and plain containers (`weights_only`): a file that
wants to run code is refused.
"""

import json
import pickle
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WINDOW_BYTES = 256 * 2**20
WRAPPERS = ("model", "state_dict", "module")  # entries under which training scripts put the state dict
# What torch.load has been seen to raise for files with a few bytes changed. Anything else is a fault of ours.
DAMAGE = (
    SafetensorError,  # torch.load hands a file whose name ends so to that library
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
)
SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
Shape = tuple[int, ...]


class WeightsError(ValueError):
    """A weights file or folder that cannot be used: what was expected, what was found, what to do next."""


def container(path: Path) -> str:
    """What kind of file this is, by its first bytes: 'zip', 'pickle', 'safetensors' or 'gguf'. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(64)
    for kind, matches in (
        ("zip", start.startswith(b"PK\x03\x04")),
        ("pickle", start.startswith(b"\x80")),
        ("gguf", start.startswith(b"GGUF")),
        ("safetensors", start[8:9] == b"{"),
    ):
        if matches:
            return kind
    lfs = start.startswith(b"version https://git-lfs")
    what = "a git-lfs pointer (run: git lfs pull)" if lfs else f"something that starts with {start[:16]!r}"
    raise WeightsError(f"{path}: expected a .pth, .bin, .safetensors or .gguf checkpoint, got {what}; download it again")


class TensorFile:
    """The tensors of one checkpoint file. `shapes` and `dtypes` by name; `read(name)` gives the tensor itself.

    A dict that wraps the state dict ({"model": {...}}) is looked through. What `read` returns is a view of the file that
    stays valid while it is referenced: copy it, don't collect views. Raises WeightsError for what is not a checkpoint.
    """

    def __init__(self, path: str | Path, window_bytes: int | None = None):
        """`window_bytes`: how much may be read before the mapping is renewed."""
        self.path = Path(path)
        self._window_bytes = WINDOW_BYTES if window_bytes is None else window_bytes
        self._kind = container(self.path)
        if self._kind == "gguf":
            raise WeightsError(f"{self.path}: a GGUF file stands for a whole model; pass it as the LLaMA model path")
        self._open()

    def _open(self) -> None:
        self._bytes_read = 0
        if self._kind == "safetensors":
            self._file = _open_safetensors(self.path)
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 (not a dict)
            self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            self.dtypes = {name: SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype()) for name, part in slices.items()}
        else:
            self._tensors = _state_dict(self.path, _unpickle(self.path, mapped=self._kind == "zip"))
            self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
            self.dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor called `name`, on the CPU, in the file's own dtype."""
        if self._bytes_read > self._window_bytes and self._kind != "pickle":
            self._open()  # drops the pages that were read through the old mapping
        tensor = self._file.get_tensor(name) if self._kind == "safetensors" else self._tensors[name]
        self._bytes_read += tensor.nbytes
        return tensor


def open_shards(paths: list[Path]) -> list[TensorFile]:
    """The files of one model; together they hold no more in memory than one file would."""
    return [TensorFile(path, WINDOW_BYTES // len(paths)) for path in paths]


def _open_safetensors(path: Path):
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as problem:
        raise WeightsError(f"{path}: not a whole safetensors file ({problem}); download it again") from problem


def _unpickle(path: Path, mapped: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except pickle.UnpicklingError as problem:
        named = re.search(r"(?:GLOBAL|global:?|class|function) ([\w.]+\.[\w.]+)", str(problem))
        if named is None:
            raise WeightsError(f"{path}: not a checkpoint of tensors ({_brief(problem)}); download it again") from problem
        raise WeightsError(
            f"{path}: expected tensors only, got a pickle that calls {named[1]}; loading it could run code from the file. "
            "Get the weights as .safetensors, or have someone who trusts the file save its state dict alone"
        ) from problem
    except DAMAGE as problem:
        raise WeightsError(
            f"{path}: truncated or damaged ({_brief(problem)}); download it again and compare its size"
        ) from problem


def _brief(problem: Exception) -> str:
    """The first sentence of a library's message, without its advice."""
    return (str(problem) or type(problem).__name__).splitlines()[0].split(". ")[0][:160]


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    """The {name: tensor} part of what was in the file."""
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    strange = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise WeightsError(f"{path}: expected tensors only, got other entries: {listed(strange)}")
    return content


def read_json(path: Path) -> dict:
    """A JSON file that holds an object. Raises WeightsError."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as problem:
        raise WeightsError(f"{path}: not readable as JSON ({problem}); download it again") from problem
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(content).__name__}; download it again")
    return content


def listed(names, most: int = 6) -> str:
    """The first few of some names, for a message."""
    names = list(names)
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_tensors(
    where: Path,
    shapes: dict[str, Shape],
    wanted: dict[str, Shape],
    known_extra: Iterable[str] = (),
    what: str = "a LLaMA of its own sizes",
    advice: str = "the file is incomplete or of another model: download it again",
) -> None:
    """Raise WeightsError unless `found` is exactly `wanted`; names in `known_extra` are passed over."""
    missing = [name for name in wanted if name not in shapes]
    unexpected = sorted(set(shapes) - set(wanted) - set(known_extra))
    both = [name for name in wanted if name in shapes and shapes[name] != wanted[name]]
    reshaped = [f"{name} is {shapes[name]}, expected {wanted[name]}" for name in both]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    if problems := "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names):
        raise WeightsError(f"{where} is not {what}: {problems} (it has {len(wanted)} tensors); {advice}")
