"""How imagebind_tiny is made and measured: what it may see, what its loss is, and that the shipped weights name cues."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "demo"))
import measure_encoder
import train_encoder
from train_encoder import TrainEncoderSettings

from imagebind_llm import config
from imagebind_llm.clips.media import load_clip
from imagebind_llm.demo_world import cues, face, phrases, texts, voice, write
from imagebind_llm.encoder.bpe import ClipBPE
from imagebind_llm.encoder.weights import load_imagebind

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "imagebind_tiny.safetensors"


@pytest.fixture
def toy_preset(monkeypatch):
    towers = {
        "vision": config.TowerConfig(16, 1, 2, (2, 224, 224), (2, 56, 56), (2, 56, 56), pre_norm=True),
        "text": config.TowerConfig(8, 1, 2, (77,), logit_scale=1 / 0.07, learnable_scale=True),
        "audio": config.TowerConfig(16, 1, 2, (128, 204), (64, 16), (64, 16), bias_kv=True, logit_scale=20.0),
    }
    monkeypatch.setitem(config.IMAGEBIND_PRESETS, train_encoder.PRESET, lambda: config.ImageBindConfig(towers, out_width=32))


def toy(**changed):
    settings = {"text_steps": 6, "vision_steps": 3, "audio_steps": 3, "batch_size": 4, "num_workers": 0}
    return TrainEncoderSettings(**(settings | changed))


def few_windows(modality):
    return train_encoder.Speakers(modality, seed=0, batch_size=8, n=4)


# --- what training may see


def test_sentences_come_from_the_pool_of_the_train_split_only():
    rng = np.random.default_rng(0)
    for family in cues.FAMILIES:
        *said, gist = train_encoder._sentences(family, rng)
        assert set(said) <= set(texts.pool(family, "train")) and not set(said) & set(texts.pool(family, "test"))
        assert gist.removeprefix("the words ") in phrases.GISTS[family]


def test_training_draws_from_seeds_that_no_split_uses():
    assert train_encoder.FRESH not in range(len(write.SPLITS))


def test_batches_know_nothing_of_what_goes_with_which_intent(monkeypatch):
    """So a world of another version needs no other encoder."""
    before = [train_encoder.TextBatches(0, 1)[0], train_encoder.Speakers("audio", 0, 4, 1)[0]]
    monkeypatch.setattr(cues, "likelihood", None)
    monkeypatch.setattr(cues, "TYPICAL", None)
    after = [train_encoder.TextBatches(0, 1)[0], train_encoder.Speakers("audio", 0, 4, 1)[0]]
    assert all(torch.equal(a, b) for one, other in zip(before, after, strict=True) for a, b in zip(one, other, strict=True))


def test_a_batch_depends_on_seed_and_number_alone():
    data = few_windows("audio")
    (one, values), (again, _), (other, _) = data[2], few_windows("audio")[2], data[1]
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.shape == (8, 1, 128, 204) and values.shape == (8, len(cues.CUES))
    assert few_windows("vision")[0][0].shape == (8, 3, 2, 224, 224)


def test_training_pictures_and_sounds_are_what_the_front_end_makes_of_the_coded_clip(tmp_path, monkeypatch):
    row = write.draw_world(0, {"train": 3, "dev": 1, "test": 1})[2]
    monkeypatch.setattr(write, "SIZES", [(320, 240)])
    monkeypatch.setattr(train_encoder, "SIZES", [(320, 240)])
    write.write_clip(tmp_path / "clip.mp4", row, seed=0)
    coded = load_clip(tmp_path / "clip.mp4", ("vision", "audio"))
    look = face.draw_look(write.generator(0, row.split, row.index, "picture"))
    monkeypatch.setattr(face, "draw_look", lambda rng: look)
    drawn = train_encoder.picture(row.scene.cues, np.random.default_rng(0))[0].float()  # the centre crop
    assert (coded["vision"].inputs[1] - drawn).abs().mean() < 0.08  # of pixels with unit deviation
    spoken = voice.speak(row.scene.cues, 6.0, write.generator(0, row.split, row.index, "sound"))
    monkeypatch.setattr(voice, "speak", lambda shown, duration_s, rng: spoken[: 2 * voice.SAMPLE_RATE])
    monkeypatch.setattr(write, "MEDIAN_S", 1e9)  # the clip is as long as any
    write.write_clip(tmp_path / "long.mp4", row, seed=0)
    heard = train_encoder.sound(row.scene.cues, np.random.default_rng(0))[0]
    coded_mel = load_clip(tmp_path / "long.mp4", ("audio",))["audio"].inputs[0]
    assert (coded_mel - heard)[..., :190].abs().mean() < 0.12


# --- the loss


def test_contrast_equals_a_loop_over_anchors_in_both_directions():
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (5, 4))
    match = torch.rand(5, 4, generator=generator) < 0.4
    match[2] = False  # an anchor without a match counts for nothing
    scale = torch.tensor(7.0)

    def loop(a, b, match):
        losses = []
        for i in range(len(a)):
            weights = [torch.exp(scale * a[i] @ b[j]) for j in range(len(b))]
            logs = [torch.log(weights[j] / sum(weights)) for j in range(len(b)) if match[i, j]]
            losses += [-sum(logs) / len(logs)] if logs else []
        return sum(losses) / len(losses)

    expected = (loop(a, b, match) + loop(b, a, match.T)) / 2
    torch.testing.assert_close(train_encoder.contrast(a, b, match, scale), expected)


def test_each_cue_is_contrasted_with_its_own_phrases_only():
    names = F.one_hot(torch.arange(len(train_encoder.PHRASES))).float()
    shown = torch.tensor([[0] * len(cues.CUES), [1] * len(cues.CUES)])
    rows = [[i for i, (cue, value, _) in enumerate(train_encoder.PHRASES) if value == cues.CUES[cue][v]] for v in (0, 1)]
    x = F.normalize(torch.stack([names[own].sum(0) for own in rows]), dim=1)
    right = train_encoder.cue_losses(x, shown, names, torch.tensor(60.0), tuple(cues.CUES))
    wrong = train_encoder.cue_losses(x, 1 - shown, names, torch.tensor(60.0), tuple(cues.CUES))
    assert list(right) == list(cues.CUES)
    assert all(wrong[cue] > right[cue] + 1 for cue in cues.CUES)


def test_paraphrases_attract():
    meaning = torch.tensor([0, 0, 1, 1])
    x = F.one_hot(meaning).float()
    torch.testing.assert_close(train_encoder.paraphrase_loss(x, meaning, torch.tensor(50.0)), torch.tensor(0.0))
    assert train_encoder.paraphrase_loss(x, torch.tensor([0, 1, 0, 1]), torch.tensor(50.0)) > 10


def test_learning_rate_warms_up_and_falls_to_nothing():
    rates = [train_encoder.lr_at(step, 200, 1.0) for step in range(200)]
    assert rates[0] < 0.2 and max(rates) == 1.0 and rates[-1] < 1e-3
    assert rates.index(1.0) < 15 and all(a >= b for a, b in itertools.pairwise(rates[12:]))


# --- the run


def test_patches_start_whitened(toy_preset):
    torch.manual_seed(0)
    model = train_encoder.ImageBind(config.IMAGEBIND_PRESETS[train_encoder.PRESET]())
    windows = few_windows("audio")[0][0]
    train_encoder.start_stem(model, "audio", windows)
    tokens = model.modality_preprocessors["audio"].rgbt_stem.proj(windows).flatten(2).transpose(1, 2).flatten(0, 1)  # (n,16)
    second_moment = tokens.T @ tokens / len(tokens) / 0.03**2
    torch.testing.assert_close(second_moment, torch.eye(16), atol=0.15, rtol=0)


def test_one_command_trains_saves_and_loads_back_within_float16(toy_preset, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(train_encoder, "measure", lambda *arguments, **_: measured.append(arguments))
    trained = []
    monkeypatch.setattr(
        train_encoder, "train", lambda settings, real=train_encoder.train: trained.append(real(settings)) or trained[0]
    )
    flags = {**toy().__dict__, "output_dir": tmp_path}
    argv = [
        part
        for name in ("output_dir", "text_steps", "vision_steps", "audio_steps", "batch_size", "num_workers")
        for part in (f"--{name}", str(flags[name]))
    ]
    train_encoder.main(argv)
    path = tmp_path / "imagebind_tiny.safetensors"
    loaded = load_imagebind(path, train_encoder.PRESET)
    for name, tensor in trained[0].state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert len(measured) == 1 and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_binding_audio_moves_the_audio_tower_but_neither_text_nor_the_patch_projection(toy_preset):
    torch.manual_seed(0)
    model = train_encoder.ImageBind(config.IMAGEBIND_PRESETS[train_encoder.PRESET]())
    train_encoder.train_tower(model, "audio", toy(audio_steps=1))
    started = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_encoder.optimize(
        model,
        "audio",
        few_windows("audio"),
        lambda batch: {"x": train_encoder.unit(model, "audio", batch[0])[:, 0].sum()},
        toy(),
    )
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, started[name])}
    assert moved and all(name.split(".")[1] == "audio" for name in moved)
    assert not any("rgbt_stem.proj" in name for name in moved)


# --- the measuring


def test_every_sentence_is_known_by_its_family():
    for family in cues.FAMILIES:
        assert {measure_encoder.family_of(text) for text in texts.pool(family, "test")} == {family}
    with pytest.raises(ValueError, match="make the world again"):
        measure_encoder.family_of("to be or not to be")


def test_probe_reads_what_is_linear_and_never_sees_test_labels():
    rng = np.random.default_rng(0)
    features = {split: rng.standard_normal((120, 5)) for split in ("train", "dev", "test")}
    labels = {split: (x[:, 0] > 0).astype(int) for split, x in features.items()}
    assert measure_encoder.probe_accuracy(features, labels) > 0.9
    flipped = labels | {"test": 1 - labels["test"]}
    assert measure_encoder.probe_accuracy(features, flipped) < 0.1


def test_embeddings_that_hold_the_true_cues_score_as_the_probe_on_the_true_cues_does():
    rng = np.random.default_rng(0)
    scenes = {split: [cues.draw_scene(rng) for _ in range(n)] for split, n in (("train", 300), ("dev", 60), ("test", 200))}
    truth = {split: [{"family": scene.family} | scene.cues for scene in some] for split, some in scenes.items()}
    intents = {split: np.array([scene.intent for scene in some]) for split, some in scenes.items()}
    everything = list(cues.VALUES)
    held = {split: torch.tensor([measure_encoder.one_hot(one, everything) for one in some]) for split, some in truth.items()}
    vectors = {split: x[:, None].expand(-1, 3, -1) for split, x in held.items()}  # (n,M,values)
    *_, last = measure_encoder.intent_table(vectors, intents, truth).splitlines()
    name, ceiling, rule, told, ours, ratio = [cell.strip() for cell in last.strip("|").split("|")]
    assert name == "text + audio + vision" and float(ceiling) == pytest.approx(90.9, abs=0.1)
    assert float(rule) > 86 and abs(float(told) - float(ours)) < 1.5
    assert float(ratio) == pytest.approx(float(ours) / float(ceiling), abs=0.01)


# --- the weights that ship


def test_shipped_weights_are_small_and_name_cues_of_new_speakers():
    assert SHIPPED.stat().st_size < 10e6
    model, tokens = load_imagebind(SHIPPED, train_encoder.PRESET), ClipBPE()
    for modality, group in train_encoder.GROUPS.items():
        data = train_encoder.Speakers(modality, seed=12345, batch_size=64, n=1)
        windows, values = data[0]
        windows, values = windows[::2], values[::2]  # the centre crops, the first windows
        with torch.no_grad():
            vectors = F.normalize(model.encode(modality, windows.float()), dim=1)
            for cue in group:
                names = [model.encode("text", tokens.encode(list(said))).mean(0) for said in phrases.PHRASES[cue].values()]
                nearest = (vectors @ F.normalize(torch.stack(names), dim=1).T).argmax(1)
                assert (nearest == values[:, list(cues.CUES).index(cue)]).float().mean() > 0.75, cue
