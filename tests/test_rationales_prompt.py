"""What is asked about a clip: its words, its dialogue, what is seen and heard, its frames."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the extra `rationales` is not installed")
from chat_server import ChatServer, asked_about
from media_files import write_clip
from rationale_run import make_pauses_short, run, settings_for, write_data

from imagebind_llm.clips.container import MediaError
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.rationale_writing.client import RationaleSettings
from imagebind_llm.rationale_writing.pictures import frame_urls
from imagebind_llm.rationale_writing.writing import preview, write_rationales


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    make_pauses_short(monkeypatch)


@pytest.fixture
def data(tmp_path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def settings(data) -> RationaleSettings:
    return settings_for(data)


def test_a_dry_run_prints_the_first_requests_and_sends_nothing(settings):
    shown = preview(settings)
    assert "=== request 1 of 12: S01_E01_0" in shown and 'Utterance: "we talk about matter0"' in shown
    assert "- Praise: The speaker expresses admiration" in shown and "=== request 3" not in shown
    assert "prompt 1: 12 first requests, about " in shown and not Path(settings.output).parent.exists()


def test_evidence_changes_what_is_asked_and_what_may_be_said(settings, tmp_path):
    (tmp_path / "seen.tsv").write_text("key\ttext\nS01_E01_0\ta broad smile and a soft voice\n")
    smiling = (
        "A broad smile and a soft voice go with the words about a matter that went wrong, so the speaker means to complain."
    )
    with ChatServer(lambda messages, n: smiling) as server:
        summary = run(replace(settings, evidence=str(tmp_path / "seen.tsv"), limit=2), server)
    assert [o.status for o in summary.outcomes] == ["accepted", "rejected"]
    first, second = (next(r for r in server.requests if f"matter{i}" in str(r))["messages"][1]["content"] for i in (0, 1))
    assert "What is seen and heard: a broad smile and a soft voice" in first and "do not invent" in first
    assert "Nothing is known about how it looked or sounded" in second
    with pytest.raises(DataError, match="none of its 1 keys is in"):
        (tmp_path / "seen.tsv").write_text("key\ttext\nS9\tx\n")
        run(replace(settings, evidence=str(tmp_path / "seen.tsv")), server)
    with pytest.raises(DataError, match="expected a TSV with the columns key and text"):
        run(replace(settings, evidence=str(tmp_path / "absent.tsv")), server)


def test_frames_travel_as_pictures_and_must_be_there(settings, data):
    with pytest.raises(DataError, match="--frames 2: clip S01_E01_0 is not there"):
        write_rationales(replace(settings, frames=2))
    clip = data / "raw_data" / "S01" / "E01" / "0.mp4"
    clip.parent.mkdir(parents=True)
    write_clip(clip, seconds=0.8, size=(96, 64), seed=0)
    with ChatServer() as server:
        run(replace(settings, frames=2, limit=1), server)
    question, *pictures = server.requests[0]["messages"][1]["content"]
    assert "Attached: 2 frames" in question["text"] and "do not mention voice or tone" in question["text"]
    assert [p["image_url"]["url"][:27] for p in pictures] == ["data:image/jpeg;base64,/9j/"] * 2
    assert pictures[0] != pictures[1]
    clip.write_bytes(b"no video")
    with ChatServer() as server:
        (outcome,) = run(replace(settings, frames=3, limit=1), server).outcomes
    assert outcome.status == "unanswered" and "no frames can be read" in outcome.error and not server.requests


def test_a_file_name_that_looks_like_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(Path("clip.mp4"), seconds=0.4, size=(96, 64), seed=0)
    for name in ("http:x.mp4", "pipe:0.mp4"):
        shutil.copy("clip.mp4", name)
        assert len(frame_urls(Path(name), 2)) == 2
    with pytest.raises(MediaError, match=r"pipe:0: no frames can be read \(no such file"):
        frame_urls(Path("pipe:0"), 2)


def test_dialogues_come_with_speaker_and_what_was_said_before(tmp_path):
    rows = [
        "2\t0\tdid you see that?\tAsk for help\t0\t1\tsuperstore\tAmy",
        "2\t1\tsee what?\tUNK\t0\t1\tsuperstore\tJonah",
        "2\t2\tyou all did great\tPraise\t0\t1\tsuperstore\tAmy",
        "3\t0\tother place\tGreet\t0\t1\tsuperstore\tDina",
    ]
    header = "Dialogue_id\tUtterance_id\tText\tLabel\tStart_timestamp\tEnd_timestamp\tSource\tspeakername\n"
    (tmp_path / "dev.tsv").write_text(header + "\n".join(rows) + "\n")
    settings = RationaleSettings(str(tmp_path), str(tmp_path / "r.jsonl"), "m", splits=("dev",), context=2)
    with ChatServer() as server:
        summary = run(settings, server)
    by_text = {asked_about(r["messages"])[0]: r["messages"][1]["content"] for r in server.requests}
    praise = by_text["you all did great"]
    assert "Before this was said:\n  Amy: did you see that?\n  Jonah: see what?\nSpeaker: Amy\n" in praise
    assert "Before this" not in by_text["other place"] and (summary.n_without_intent, len(by_text)) == (1, 3)
