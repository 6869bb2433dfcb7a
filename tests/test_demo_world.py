"""The demo world: its ceilings are exact, its texts and rationales keep their promises, its files are real."""

import csv
import itertools
import json
import re
import shutil
from collections import Counter
from dataclasses import asdict

import av
import numpy as np
import pytest
from toy_training import TOKENIZER

from imagebind_llm.clips.media import load_clip
from imagebind_llm.config import MODALITIES, modality_subsets
from imagebind_llm.corpus.sequences import load_corpus
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.demo_world import cues, phrases, references, texts, write
from imagebind_llm.demo_world.__main__ import main
from imagebind_llm.demo_world.published import CUE_TABLE, tables_digest
from imagebind_llm.demo_world.write import DemoWorldSettings
from imagebind_llm.explain.cue_table import CueTable
from imagebind_llm.intents.evaluation import ceilings
from imagebind_llm.llama.tokenizers import load_tokenizer
from imagebind_llm.taxonomy import DEMO
from imagebind_llm.training.settings import TrainSettings

SMALL = {"train": 24, "dev": 8, "test": 12}
FULL = {"train": 600, "dev": 200, "test": 400}


@pytest.fixture(scope="module")
def full_rows():
    return write.draw_world(0, FULL)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write.write_world(DemoWorldSettings(str(root), workers=2, **SMALL))
    return root


def read_tsv(path):
    with open(path, encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def assert_same_clip(one, other):
    """libx264 now and then codes a few pixels a level apart, so bytes may differ where nobody sees or hears it."""
    for kind in ("video", "audio"):
        ours, theirs = ([f.to_ndarray().astype(float) for f in frames(path, kind)] for path in (one, other))
        assert [f.shape for f in ours] == [f.shape for f in theirs] and ours
        assert max(np.abs(a - b).mean() for a, b in zip(ours, theirs, strict=True)) < (0.1 if kind == "video" else 1e-6)


def frames(path, kind):
    with av.open(str(path)) as container:
        yield from container.decode(**{kind: 0})


# --- the table and its ceilings


def test_every_intent_has_a_typical_value_of_every_variable():
    assert set(cues.TYPICAL) == set(DEMO.labels)
    for intent, variable in itertools.product(cues.TYPICAL, cues.VALUES):
        assert cues.TYPICAL[intent][variable] in cues.VALUES[variable]
    np.testing.assert_allclose(cues.PRIOR.sum(), 1)


@pytest.mark.parametrize("modalities", modality_subsets(MODALITIES), ids="+".join)
def test_bayes_accuracy_is_what_the_bayes_classifier_scores_on_drawn_scenes(modalities):
    rng, n, hits = np.random.default_rng(7), 4000, 0
    variables = [variable for name in modalities for variable in cues.CUES_OF[name]]
    for _ in range(n):
        scene = cues.draw_scene(rng)
        known = {"family": scene.family} | scene.cues
        guess = cues.posterior({variable: known[variable] for variable in variables}).argmax()
        hits += cues.INTENTS[guess] == scene.intent
    expected = cues.bayes_accuracy(modalities)
    assert abs(hits / n - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_ceilings_make_every_modality_needed():
    accuracy = {subset: cues.bayes_accuracy(subset) for subset in modality_subsets(MODALITIES)}
    assert 0.4 < accuracy["text",] < 0.6
    assert accuracy["text", "audio", "vision"] == pytest.approx(0.909, abs=5e-4), "README and the published table say so"
    for pair in itertools.combinations(("text", "audio", "vision"), 2):
        assert accuracy[pair] < accuracy["text", "audio", "vision"] - 0.03
        assert all(accuracy[pair] > accuracy[name,] + 0.13 for name in pair)
    assert max(cues.variables_accuracy([name]) for name in cues.CUES) < 0.3


def test_bayes_accuracy_of_a_world_worked_out_by_hand(monkeypatch):
    # intents 3:1, a cue that is right in 80 %: best = max(.75*.8, .25*.2) + max(.75*.2, .25*.8) = .6 + .2
    monkeypatch.setattr(cues, "PRIOR", np.array([0.75, 0.25]))
    monkeypatch.setattr(cues, "INTENTS", ("a", "b"))
    monkeypatch.setattr(cues, "likelihood", lambda name: np.array([[0.8, 0.2], [0.2, 0.8]]))
    assert cues.variables_accuracy(["any"]) == pytest.approx(0.6 + 0.2)


# --- words


def test_texts_of_a_split_occur_in_no_other_and_test_words_all_occur_in_train(full_rows):
    said = {split: {row.text for row in full_rows if row.split == split} for split in FULL}
    assert not said["train"] & said["test"] and not said["dev"] & said["test"] and not said["train"] & said["dev"]
    words = {split: {word for text in said[split] for word in text.split()} for split in FULL}
    assert words["test"] <= words["train"]
    assert all(text == text.lower() and "\t" not in text for texts_ in said.values() for text in texts_)
    assert len(said["train"]) > 450


def test_every_family_has_sentences_for_every_split():
    for family, split in itertools.product(cues.FAMILIES, FULL):
        assert len(texts.pool(family, split)) > 20
    assert set(texts.TEMPLATES) == set(cues.FAMILIES) == set(phrases.GISTS)


def test_no_sentence_belongs_to_two_families():
    everything = [set(texts.pool(family, "train")) for family in cues.FAMILIES]
    assert sum(map(len, everything)) == len(set.union(*everything))


def test_no_phrase_contains_another():
    owned = [phrase for table in phrases.PHRASES.values() for values in table.values() for phrase in values]
    assert all(a == b or not re.search(rf"\b{b}\b", a) for a, b in itertools.product(owned, owned))
    assert {cue: tuple(table) for cue, table in phrases.PHRASES.items()} == cues.CUES


def test_cues_in_reads_back_what_rationales_and_captions_claim(full_rows):
    rng = np.random.default_rng(0)
    for row in full_rows:
        assert CUE_TABLE.cues_in(row.rationale) == phrases.deciding_cues(row.scene)
        assert CUE_TABLE.cues_in(phrases.caption(row.scene.cues, rng)) == row.scene.cues
    assert CUE_TABLE.cues_in("A broad smile, then an angry frown.") == {"expression": "smile"}
    assert CUE_TABLE.cues_in("a broad smiles") == {}


def test_rationales_are_short_and_name_the_intent_once_at_the_end(full_rows):
    label = re.compile(r"\b(" + "|".join(DEMO.labels) + r")\b", re.IGNORECASE)
    for row in full_rows:
        assert 20 <= len(row.rationale.split()) <= 60
        assert label.findall(row.rationale) == [row.scene.intent.lower()]
        assert row.rationale.endswith(f"{row.scene.intent.lower()}.")
    templates = {re.sub(r"\W.*", "", row.rationale) for row in full_rows}
    assert templates == {"The", "We", "There", "Looking"}


def test_an_intent_leaves_open_what_is_seen_and_heard():
    """Else a rationale that never looks is nearly as true as one that does."""
    assert all(0.62 <= cues.RELIABILITY[cue] <= 0.72 for cue in cues.CUES)


def test_named_cues_speak_for_the_intent(full_rows):
    scores = [phrases.evidence(row.scene)[cue] for row in full_rows for cue in phrases.deciding_cues(row.scene)]
    assert np.mean(np.array(scores) > 0) > 0.97


# --- references of other kinds


def true_share(rationales, rows):
    """Of the claims of the rationales, the share that is true of their clips."""
    claims = [(row, claim) for text, row in zip(rationales, rows, strict=True) for claim in CUE_TABLE.cues_in(text).items()]
    return np.mean([row.scene.cues[cue] == value for row, (cue, value) in claims])


def test_blind_references_say_what_the_intent_usually_shows_not_what_the_clip_does(full_rows):
    told = references.blind(full_rows, 0)
    taught = [i for i, row in enumerate(full_rows) if row.split != "test"]
    words = [told[i]["rationale"] for i in taught]
    assert true_share(words, [full_rows[i] for i in taught]) == pytest.approx(0.64, abs=0.03)
    assert true_share([row.rationale for row in full_rows], full_rows) == 1
    claims = [(told[i]["intent"], claim) for i in taught for claim in CUE_TABLE.cues_in(told[i]["rationale"]).items()]
    assert np.mean([cues.TYPICAL[intent][cue] == value for intent, (cue, value) in claims]) > 0.95
    for i in taught:  # the sentence patterns, what the words do and the intent are the faithful ones'
        gist = phrases.GISTS[full_rows[i].scene.family]
        assert any(words in told[i]["rationale"] for words in gist)
        assert told[i]["rationale"].endswith(f"{full_rows[i].scene.intent.lower()}.")


@pytest.mark.parametrize("chosen", [lambda rows: references.blind(rows, 0), lambda rows: references.thinned(rows, 0, 10)])
def test_other_references_change_nothing_but_the_rationales_of_train_and_dev(full_rows, chosen):
    for row, line in zip(full_rows, chosen(full_rows), strict=True):
        own = write.reference(row)
        assert own["cues"] == row.scene.cues and list(line) == list(own)
        assert line | {"rationale": ""} == own | {"rationale": ""}
        assert row.split != "test" or line == own


def test_a_share_of_the_references_is_kept_and_a_larger_share_holds_it(full_rows):
    def kept(percent, split):
        lines = zip(full_rows, references.thinned(full_rows, 0, percent), strict=True)
        return {row.key for row, line in lines if row.split == split and line["rationale"] == row.rationale}

    assert [len(kept(percent, split)) for percent, split in ((10, "train"), (10, "dev"), (35, "train"))] == [60, 20, 210]
    assert kept(10, "train") < kept(35, "train") and len(kept(1, "test")) == 400
    assert len({key.split("_")[1] for key in kept(10, "train")}) > 10, "from everywhere, not from the first episodes"


def test_other_references_draw_no_clip_and_leave_the_faithful_ones(world, capsys):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in world.rglob("*.mp4")}
    faithful = (world / "rationales.jsonl").read_bytes()
    flags = ["--output_dir", str(world), *(word for split, n in SMALL.items() for word in (f"--{split}", str(n)))]
    main([*flags, "--references", "blind"])
    assert f"--rationales {world}/rationales-blind.jsonl" in capsys.readouterr().out
    main([*flags, "--references", "50%"])
    main(flags)  # the world is still this one
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in world.rglob("*.mp4")} == before
    assert (world / "rationales.jsonl").read_bytes() == faithful
    known = json.loads((world / "world.json").read_text())
    assert known["version"] == cues.VERSION
    assert known["references"] == {
        "faithful": "rationales.jsonl", "blind": "rationales-blind.jsonl", "50%": "rationales-50.jsonl"
    }  # fmt: skip
    assert [len((world / name).read_text().splitlines()) for name in known["references"].values()] == [44] * 3


@pytest.mark.parametrize("kind", ["0%", "100%", "10", "deaf"])
def test_references_that_cannot_be_meant_are_refused(kind, capsys):
    with pytest.raises(SystemExit):
        main(["--references", kind])
    assert f"--references {kind}: expected faithful, blind or a share from 1% to 99%" in capsys.readouterr().err


def test_training_never_sees_the_true_cues_and_keeps_intents_without_rationales(world, tmp_path):
    def rows_with(**changed):
        lines = [json.loads(line) | changed for line in (world / "rationales.jsonl").read_text().splitlines()]
        path = tmp_path / f"{'-'.join(changed) or 'same'}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = TrainSettings(data_path=str(world), output_dir=str(tmp_path), modalities=("none",), rationales=str(path))
        return load_corpus(settings.corpus, load_tokenizer(TOKENIZER), 512).splits

    own, other = rows_with(), rows_with(cues={"expression": "CANARY"})
    assert own == other and all(row.rationale for row in own["train"])
    bare = rows_with(rationale="")
    assert [row.intent for row in bare["train"]] == [row.intent for row in own["train"]]
    assert not any(row.rationale for row in bare["train"])


# --- draws


def test_rows_depend_on_seed_split_and_index_only(full_rows):
    few = write.draw_world(0, SMALL)
    for row in few:
        twin = next(other for other in full_rows if other.key == row.key)
        assert twin.scene == row.scene and (row.split != "train" or twin == row)
    assert [row.scene for row in write.draw_world(1, SMALL)] != [row.scene for row in few]


def test_episodes_belong_to_one_split(full_rows):
    owners = {(row.season, row.episode): row.split for row in full_rows}
    assert all(owners[row.season, row.episode] == row.split for row in full_rows)
    assert len({row.key for row in full_rows}) == len(full_rows)


# --- files


def test_the_folder_has_mintrecs_layout(world):
    for split, count in SMALL.items():
        table = read_tsv(world / f"{split}.tsv")
        assert len(table) == count and list(table[0]) == ["season", "episode", "clip", "text", "label"]
        for row in table:
            assert row["label"] in DEMO.labels
            assert (world / "raw_data" / row["season"] / row["episode"] / f"{row['clip']}.mp4").is_file()
    references = [json.loads(line) for line in (world / "rationales.jsonl").read_text().splitlines()]
    assert [list(row) for row in references] == [["key", "intent", "rationale", "cues"]] * sum(SMALL.values())
    assert not list(world.rglob("*.tmp"))


def test_clips_are_h264_and_aac_of_varied_shape_that_the_front_end_reads(world):
    kinds: dict[str, Counter] = {name: Counter() for name in ("size", "rate", "sound", "layout")}
    for path in world.rglob("*.mp4"):
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert 0.7 < container.duration / 1e6 < 6.2
            shape = np.sign(video.width - video.height)
            for name, value in zip(kinds, (shape, video.average_rate, audio.rate, audio.layout.name), strict=True):
                kinds[name][value] += 1
    assert set(kinds["size"]) == {-1, 0, 1} and len(kinds["rate"]) > 3 and len(kinds["sound"]) == 4
    assert set(kinds["layout"]) == {"mono", "stereo"}
    for path in itertools.islice(world.rglob("*.mp4"), 6):
        windows = load_clip(path, ("vision", "audio"))
        assert windows["vision"].inputs.shape[1:] == (3, 2, 224, 224) and windows["audio"].inputs.shape[1:] == (1, 128, 204)


def test_the_same_seed_makes_the_same_clip_and_another_does_not(world, tmp_path):
    row = write.draw_world(0, SMALL)[3]
    write.write_clip(tmp_path / "again.mp4", row, seed=0)
    assert_same_clip(tmp_path / "again.mp4", world / row.path)
    write.write_clip(tmp_path / "other.mp4", row, seed=1)
    with pytest.raises(AssertionError):
        assert_same_clip(tmp_path / "other.mp4", world / row.path)


def test_an_interrupted_run_makes_what_is_missing_and_touches_nothing_else(world):
    made = write.draw_world(0, SMALL)
    lost, kept = world / made[5].path, world / made[6].path
    before, stamp = lost.rename(world / "before.mp4"), kept.stat().st_mtime_ns
    write.write_world(DemoWorldSettings(str(world), workers=1, **SMALL))
    assert_same_clip(lost, before)
    assert kept.stat().st_mtime_ns == stamp


def test_a_world_without_its_tables_gets_them_and_keeps_its_clips(world):
    clips = {path: path.stat().st_mtime_ns for path in world.rglob("*.mp4")}
    written = json.loads((world / "world.json").read_text())
    old = {"version": cues.VERSION, "seed": 0, "code": "a8a440c5f223d4ef", "references": written["references"]}
    (world / "world.json").write_text(json.dumps(old))  # as worlds were marked before
    (world / "ceilings.json").unlink()
    (world / "cue_phrases.json").unlink()
    write.write_world(DemoWorldSettings(str(world), workers=1, **SMALL))
    assert json.loads((world / "world.json").read_text()) == written
    assert ceilings(world) == {subset: cues.bayes_accuracy(subset) for subset in modality_subsets(MODALITIES)}
    table = CueTable.beside(world)
    assert json.dumps(asdict(table)) == json.dumps(asdict(CUE_TABLE))
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*.mp4")} == clips


def test_a_world_of_other_tables_is_refused_however_it_is_marked(world, tmp_path):
    other = shutil.copytree(world, tmp_path / "other", ignore=shutil.ignore_patterns("*.mp4"))
    marked = json.loads((other / "world.json").read_text())
    (other / "world.json").write_text(json.dumps(marked | {"tables": "0" * 16}))
    with pytest.raises(write.DemoWorldError, match="rm -r"):
        write.write_world(DemoWorldSettings(str(other), workers=1, **SMALL))
    (other / "world.json").write_text(json.dumps({"version": cues.VERSION, "seed": 0, "code": "a8a440c5f223d4ef"}))
    rows = [json.loads(line) for line in (other / "rationales.jsonl").read_text().splitlines()]
    rows[3]["cues"]["gaze"] = "aside" if rows[3]["cues"]["gaze"] != "aside" else "down"
    (other / "rationales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(write.DemoWorldError, match="rm -r"):
        write.write_world(DemoWorldSettings(str(other), workers=1, **SMALL))
    assert not list(other.rglob("*.mp4")), "nothing was drawn"


def test_the_tables_change_with_the_version_of_the_world_alone():
    """A new figure here is a new world: raise cues.VERSION, and say in data/demo/README.md what is other."""
    assert (cues.VERSION, tables_digest()) == (2, "efa627f6c6ffe1b2")


@pytest.mark.parametrize("content", ["[]", "{", '{"phrases": {}, "typical": {}, "templates": {}}', '{"phrases": 3}'])
def test_a_table_of_cues_that_is_none_is_refused(content, tmp_path):
    (tmp_path / "cue_phrases.json").write_text(content)
    with pytest.raises(DataError, match=r"cue_phrases.json: expected phrases, typical values and templates"):
        CueTable.beside(tmp_path)


def test_another_seed_in_the_same_folder_is_refused_with_what_to_type(world):
    with pytest.raises(write.DemoWorldError, match=r"--output_dir.*rm -r"):
        write.write_world(DemoWorldSettings(str(world), seed=1, **SMALL))


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(write.DemoWorldError, match="--train 600"):
        write.write_world(DemoWorldSettings(str(tmp_path), train=4, dev=0, test=4))


def test_a_clip_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(write, "_sound_frames", broken)
    with pytest.raises(OSError, match="disk full"):
        write.write_clip(tmp_path / "x.mp4", write.draw_world(0, SMALL)[0], seed=0)
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_ceilings_and_refuses_another_seed_in_one_line(tmp_path, capsys):
    flags = ["--output_dir", str(tmp_path), "--train", "2", "--dev", "1", "--test", "1", "--workers", "1"]
    main(flags)
    printed = capsys.readouterr().out
    assert "| text+audio+vision | 90.9 |" in printed and "python avt_get_emb.py" in printed
    assert main([*flags, "--seed", "1"]) == 2
    assert re.fullmatch(r"imagebind_llm.demo_world: .* rm -r .*\n", capsys.readouterr().err)
