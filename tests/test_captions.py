"""What a checkpoint of any stage says of clips, and data/demo/measure_captions.py on top of it."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from toy_training import INTENTS, ROWS, TOKENIZER, call, key_of, write_intents, write_llama, write_store

import engine_finetune
from imagebind_llm.demo_world import cues, phrases
from imagebind_llm.encoder.store import Store
from imagebind_llm.explain.captions import LISTING, describe, load_describer
from imagebind_llm.itsl.instructions import caption_exchange, encode_exchange
from imagebind_llm.llama.tokenizers import load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "demo"))
measure_captions = importlib.import_module("measure_captions")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A first stage of one epoch, whose checkpoint has no intents."""
    root = tmp_path_factory.mktemp("world")
    data = write_intents(root / "MIntRec")
    flags = {"stage": "pretrain", "data_path": data / "captions.json", "emb_path": write_store(root / "emb")}
    shape = {"llama_model_path": write_llama(root / "LLAMA", 4), "adapter_layer": 2, "adapter_len": 3, "device": "cpu"}
    pace = {"epochs": 1, "warmup_epochs": 0, "lr": 0.02, "batch_size": 4}
    done = call(engine_finetune.main, **flags, **shape, **pace, output_dir=root / "run")
    assert done.code == 0, done.err
    return root


def test_the_question_with_the_beginning_of_a_listing_is_a_prefix_of_what_was_trained():
    tokenizer = load_tokenizer(TOKENIZER)
    shown = {cue: cues.TYPICAL["Joke"][cue] for cue in cues.CUES}
    whole = encode_exchange(caption_exchange("a", phrases.caption(shown)), tokenizer, 512)
    asked = tokenizer.encode(caption_exchange("a", "").before + LISTING, bos=True)
    assert list(whole.ids[: len(asked)]) == asked


def test_captions_begin_as_asked_and_depend_on_what_is_shown(world):
    model, tokenizer, info = load_describer(world / "run" / "best")
    vectors, present = Store(world / "emb").read([key_of("dev", i) for i in range(4)])
    with torch.no_grad():  # an epoch opens the gates too little to be seen in a caption
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.fill_(3.0)

    def told(vectors, modalities=tuple(info["modalities"]), size=3):
        return list(describe(model, tokenizer, modalities, vectors, present, LISTING, size, 8))

    own = told(vectors)
    assert len(own) == 4 and all(text.startswith(LISTING) for text in own)
    assert told(vectors, size=1) == own, "a clip's caption does not depend on its batch"
    loud = vectors.clone()
    loud[:, 1] = torch.randn(4, vectors.shape[2], generator=torch.Generator().manual_seed(0))
    assert told(loud) != own
    assert told(loud, ("text", "vision")) == told(vectors, ("text", "vision")), "what the model does not know is not looked at"


def test_the_command_counts_cues_beside_what_one_can_say_without_looking(world, tmp_path, capsys, monkeypatch):
    shown = [{cue: cues.TYPICAL[INTENTS[i % 3]][cue] for cue in cues.CUES} for i in range(ROWS["dev"])]
    told = [*shown[:3], *(one | {"gaze": "nowhere", "rate": "unheard"} for one in shown[3:])]
    told = [phrases.caption({cue: value for cue, value in one.items() if value in cues.CUES[cue]}) for one in told]
    monkeypatch.setattr(measure_captions, "describe", lambda *_: iter(told))
    flags = {"checkpoint": world / "run" / "best", "data_path": world / "MIntRec", "emb_path": world / "emb", "device": "cpu"}
    page = measure(flags | {"output": tmp_path / "c.json"}, monkeypatch, capsys)
    assert f"| dev, {ROWS['dev']} clips | all cues |" in page and "| 87.5 [" in page and "| 50.0 | 100.0 |" in page
    assert "| typical of the gold intent | 100.0 [" in page and "| the truth | 100.0 [" in page
    saved = json.loads((tmp_path / "c.json").read_text())
    assert saved["accuracy"]["gaze"] == 0.5 and len(saved["captions"]) == ROWS["dev"]


def measure(flags: dict, monkeypatch, capsys) -> str:
    """What the command prints."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["measure_captions.py", *words])
    measure_captions.main()
    out, err = capsys.readouterr()
    return out + err


def test_clips_without_known_cues_are_refused(world, tmp_path, monkeypatch, capsys):
    data = write_intents(tmp_path / "MIntRec")
    (data / "rationales.jsonl").write_text('{"key": "S02_E01_0", "rationale": "We see a broad smile."}\n')
    flags = {"checkpoint": world / "run" / "best", "data_path": data, "emb_path": world / "emb"}
    assert "no clip of split dev has known cues" in measure(flags, monkeypatch, capsys)
