"""The golden LLaMA as the folders that the world keeps one in, and ways to damage them."""

import json
import shutil
from pathlib import Path

import torch

from imagebind_llm.config import LlamaConfig
from imagebind_llm.llama.decoder import Llama

GOLDEN = Path(__file__).parent / "golden" / "llama"


def copy_shards(folder: Path) -> Path:
    """A copy of the golden two-shard folder that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "f_meta_2shard", folder, copy_function=shutil.copyfile))


def write_huggingface(folder: Path) -> Path:
    """The golden weights as a Hugging Face folder."""
    folder.mkdir()
    sizes = json.loads((GOLDEN / "f_plain_llama.json").read_text())["config"]["hf_config"]
    (folder / "config.json").write_text(json.dumps(sizes | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    shutil.copyfile(GOLDEN / "f_plain_llama.hf.safetensors", folder / "model.safetensors")
    return folder


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite_shard(file: Path, change) -> None:
    tensors = torch.load(file, weights_only=True)
    change(tensors)
    torch.save(tensors, file)


def random_meta_folder(folder: Path, n_shards: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A Meta folder with grouped queries cut into `n_shards`; returns the whole tensors."""
    config = LlamaConfig(dim=64, n_layers=2, n_heads=8, n_kv_heads=4, hidden_dim=96, vocab_size=40)
    torch.manual_seed(seed)
    whole = {name: torch.randn_like(tensor) for name, tensor in Llama(config).state_dict().items()}
    folder.mkdir(parents=True)
    params = {"dim": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "norm_eps": 1e-5, "vocab_size": -1, "rope_theta": 5e5}
    (folder / "params.json").write_text(json.dumps(params))
    columns = ("wo.weight", "w2.weight", "tok_embeddings.weight")
    for i in range(n_shards):
        shard = {
            name: tensor.clone() if tensor.ndim == 1 else tensor.chunk(n_shards, 1 if name.endswith(columns) else 0)[i].clone()
            for name, tensor in whole.items()
        }
        torch.save(shard, folder / f"consolidated.{i:02d}.pth")
    return whole
