"""Another encoder is one class, its spec and a line in ENCODERS: all that is above takes its width, tokenizer and inputs."""

from pathlib import Path

import av
import pytest
import torch
from media_files import write_clip
from safetensors.torch import save_file
from torch import Tensor, nn
from toy_training import call, write_llama

import avt_get_emb
import engine_finetune
from imagebind_llm.clips.container import MediaError
from imagebind_llm.critic.judge import ClauseVectors
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.encoder.clip_encoder import ClipEncoder
from imagebind_llm.encoder.extraction import ExtractSettings, extract
from imagebind_llm.encoder.interface import Encoder, EncoderSpec
from imagebind_llm.encoder.registry import ENCODERS, load_text_tower
from imagebind_llm.encoder.store import Store
from imagebind_llm.itsl.checkpoint import read_info, read_tensors
from imagebind_llm.records import Example, Windows
from imagebind_llm.weight_files import TensorFile, WeightsError

WIDTH = 48
INPUTS = {"text": 256, "audio": 1, "vision": 3}  # numbers of one window of each modality


class ToyEncoder(Encoder):
    """A matrix for each modality."""

    def __init__(self, matrices: dict[str, Tensor]):
        super().__init__()
        self.matrices = nn.ParameterDict(matrices)

    def encode(self, modality: str, inputs: Tensor) -> Tensor:
        """(n, numbers of a window) -> (n,48); text: (n,8) bytes, counted."""
        if modality == "text":
            inputs = nn.functional.one_hot(inputs, 256).sum(1)
        return inputs.to(self.device, self.dtype) @ self.matrices[modality]


def load_toy(path: Path, *, dtype, device, towers) -> ToyEncoder:
    file = TensorFile(path)
    return ToyEncoder({name: file.read(name).to(device, dtype) for name in towers}).requires_grad_(False)


class Bytes:
    """The first 8 bytes of a text, padded with 0."""

    context_length = 8

    def encode(self, texts: list[str]) -> Tensor:
        return torch.tensor([list(text.encode()[:8].ljust(8, b"\0")) for text in texts])

    def n_tokens(self, text: str) -> int:
        return len(text.encode())


def load_toy_clip(path: Path, modalities, window_rule: str, clean_audio: bool) -> dict[str, Windows | MediaError]:
    """The mean colour of each of the first two pictures (2,3), the loudness of the sound (1,1)."""
    with av.open(str(path)) as file:
        pictures = [torch.from_numpy(frame.to_ndarray(format="rgb24")).float() for frame in file.decode(video=0)][:2]
    with av.open(str(path)) as file:
        sound = torch.cat([torch.from_numpy(frame.to_ndarray()) for frame in file.decode(audio=0)], dim=1)
    colours = torch.stack([picture.mean((0, 1)) / 255 for picture in pictures])
    windows = {"vision": Windows(colours, (1, 2)), "audio": Windows(sound.abs().mean().view(1, 1), (1,))}
    return {name: windows[name] for name in modalities}


@pytest.fixture
def toy(monkeypatch, tmp_path) -> Path:
    """The encoder is registered; its weight file."""
    monkeypatch.setitem(ENCODERS, "toy_48", EncoderSpec(WIDTH, load_toy, Bytes, load_toy_clip, "7"))
    draw = torch.Generator().manual_seed(0)
    save_file({name: torch.randn(n, WIDTH, generator=draw) for name, n in INPUTS.items()}, tmp_path / "toy_48.safetensors")
    return tmp_path / "toy_48.safetensors"


@pytest.fixture
def table(tmp_path) -> Path:
    """Two clips with labels, one to train on and one for dev."""
    for i, split in enumerate(("train", "dev")):
        write_clip(tmp_path / f"{split}.mp4", seconds=0.5, seed=i)
    rows = ["path,text,split,label", "train.mp4,say it,train,pay", "dev.mp4,a longer sentence,dev,order"]
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "clips.csv"


def test_a_registered_encoder_makes_a_store_that_a_model_trains_on(toy, table, tmp_path):
    emb, run = tmp_path / "emb", tmp_path / "run"
    encoder = {"encoder": "toy_48", "encoder_weights": str(toy)}
    summary = extract(ExtractSettings(str(table), str(emb), num_workers=0, device="cpu", **encoder))
    assert summary.present == {"text": 2, "audio": 2, "vision": 2} and (summary.n_cut_texts, summary.context_length) == (1, 8)
    store = Store(emb)
    assert (store.identity.encoder, store.identity.width, store.identity.code) == ("toy_48", WIDTH, "7")

    weights = TensorFile(toy)
    vectors, present = store.read(["train"])
    colours = load_toy_clip(tmp_path / "train.mp4", ("vision",), "to_end", False)["vision"].inputs
    wanted = (colours[0] + 2 * colours[1]) / 3 @ weights.read("vision")
    assert vectors.shape == (1, 3, WIDTH) and present.all()
    torch.testing.assert_close(vectors[0, 2], wanted)

    clip = ClipEncoder.load(vars(store.identity), str(toy)).encode(
        Example("x", "all", tmp_path / "train.mp4", "say it"), ("text", "vision")
    )
    torch.testing.assert_close(clip.vectors[0, [0, 2]], vectors[0, [0, 2]])
    assert not clip.inputs, "the page draws what clips.media makes and nothing else"
    words = load_text_tower(store.identity, str(toy))(["say it"])
    torch.testing.assert_close(words[0], vectors[0, 0])
    judged = ClauseVectors.load(store.identity, str(toy))(["say it"])
    torch.testing.assert_close(judged, nn.functional.normalize(words, dim=1))

    shape = {"llama_model_path": write_llama(tmp_path / "LLAMA", 2), "adapter_layer": 2, "adapter_len": 2}
    pace = {"epochs": 1, "warmup_epochs": 0, "batch_size": 2, "device": "cpu"}
    done = call(engine_finetune.main, data_path=table, emb_path=emb, output_dir=run, **shape, **pace)
    assert done.code == 0, done.err
    assert read_info(run / "last")["total"] == 1 and read_info(run / "last")["store"]["encoder"] == "toy_48"
    assert read_tensors(run / "last")["bridge.image_bind_proj.weight"].shape == (16, WIDTH)


def test_an_encoder_without_a_tower_embeds_what_it_has_and_refuses_the_rest(toy, table, tmp_path, monkeypatch):
    blind = EncoderSpec(WIDTH, load_toy, Bytes, load_toy_clip, "7", modalities=("text", "audio"))
    monkeypatch.setitem(ENCODERS, "toy_48", blind)
    encoder = {"encoder": "toy_48", "encoder_weights": str(toy), "num_workers": 0, "device": "cpu"}
    extract(ExtractSettings(str(table), str(tmp_path / "emb"), **encoder))
    assert Store(tmp_path / "emb").identity.modalities == ("text", "audio")
    with pytest.raises(DataError, match="--modalities vision: expected some of text audio, which --encoder toy_48 embeds"):
        extract(ExtractSettings(str(table), str(tmp_path / "other"), modalities=("text", "vision"), **encoder))


def test_the_command_takes_every_registered_encoder(capsys):
    assert call(avt_get_emb.main, data_path="x", output_dir="y", encoder="toy_48").code == 2
    done = call(avt_get_emb.main, data_path="x", output_dir="y", encoder="toy_48")
    assert ", ".join(f"{name!r}" for name in ENCODERS) in done.err or ", ".join(ENCODERS) in done.err, done.err


def test_embeddings_of_an_encoder_that_is_not_registered_are_refused_by_name(toy, table, tmp_path, monkeypatch):
    encoder = {"encoder": "toy_48", "encoder_weights": str(toy), "modalities": ("text",)}
    extract(ExtractSettings(str(table), str(tmp_path / "emb"), num_workers=0, device="cpu", **encoder))
    identity = Store(tmp_path / "emb").identity
    monkeypatch.delitem(ENCODERS, "toy_48")
    with pytest.raises(WeightsError, match=r"made by toy_48, width 48: .* expected one of imagebind_huge \(width 1024\)"):
        ClauseVectors.load(identity, str(toy))
