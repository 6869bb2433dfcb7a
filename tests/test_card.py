"""GPUs that compute in bfloat16 and GPUs that do not, pretended: which dtype frozen weights take and what is said."""

from dataclasses import replace

import pytest
import torch

from imagebind_llm import distributed
from imagebind_llm.encoder import extraction
from imagebind_llm.encoder.extraction import ExtractSettings
from imagebind_llm.encoder.registry import ENCODERS
from imagebind_llm.itsl.assembly import frozen_dtype

CUDA = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """A function that puts a GPU of this name and capability into the machine."""

    def put(name: str, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)

    return put


@pytest.mark.parametrize(("name", "capability"), [("Tesla V100-SXM2-32GB", (7, 0)), ("Tesla T4", (7, 5))])
def test_auto_takes_float32_on_a_card_without_bfloat16_and_says_so(card, capsys, name, capability):
    card(name, capability)
    assert frozen_dtype("auto", CUDA) == torch.float32
    said = capsys.readouterr().err
    assert said == f"{name} has no bfloat16: frozen weights are float32, which takes twice the memory\n"


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_card_with_bfloat16_takes_it_without_a_word(card, capsys, dtype):
    card("NVIDIA A100", (8, 0))
    assert frozen_dtype(dtype, CUDA) == torch.bfloat16 and capsys.readouterr().err == ""


def test_bfloat16_asked_for_on_a_card_without_it_is_taken_with_a_warning(card, capsys):
    card("Tesla T4", (7, 5))
    assert frozen_dtype("bfloat16", CUDA) == torch.bfloat16
    assert "--dtype bfloat16: Tesla T4 has no bfloat16 and emulates it, slowly" in capsys.readouterr().err
    assert frozen_dtype("float32", CUDA) == torch.float32 and capsys.readouterr().err == ""


def test_amds_cards_have_bfloat16_whatever_their_number(card, monkeypatch):
    card("AMD Instinct", (7, 0))
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert frozen_dtype("auto", CUDA) == torch.bfloat16


def test_a_cpu_is_not_asked_for_its_card(capsys):
    assert frozen_dtype("auto", torch.device("cpu")) == torch.float32
    assert frozen_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16 and capsys.readouterr().err == ""


def test_one_rank_alone_speaks(card, capsys, monkeypatch):
    card("Tesla T4", (7, 5))
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert frozen_dtype("auto", CUDA) == torch.float32 and capsys.readouterr().err == ""


def test_extraction_in_bfloat16_warns_on_a_card_without_it(card, capsys, monkeypatch, tmp_path):
    card("Tesla T4", (7, 5))
    (tmp_path / "list.csv").write_text("path,text\na.mp4,hello\n")
    monkeypatch.setattr(distributed, "choose_device", lambda name: "cuda:0")

    class Stop(Exception):
        """Raised where weights would go to the card."""

    def stop(*arguments, **keywords):
        raise Stop

    monkeypatch.setitem(ENCODERS, "imagebind_tiny", replace(ENCODERS["imagebind_tiny"], load=stop))
    flags = {"encoder": "imagebind_tiny", "modalities": ("text",), "dtype": "bfloat16"}
    with pytest.raises(Stop):
        extraction.extract(ExtractSettings(str(tmp_path), str(tmp_path / "emb"), **flags))
    assert "Tesla T4 has no bfloat16" in capsys.readouterr().err
