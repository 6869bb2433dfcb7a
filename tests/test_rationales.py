"""Writing rationales against a loopback endpoint: nothing is asked twice, nothing paid for is lost, failures say what to do."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the extra `rationales` is not installed")
from chat_server import ChatServer, asked_about, completion, error, good
from media_files import write_clip

from imagebind_llm.clips.container import MediaError
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.encoder.store import StoreError
from imagebind_llm.rationale_writing import client, writing
from imagebind_llm.rationale_writing.client import RationalesError, RationaleSettings
from imagebind_llm.rationale_writing.pictures import frame_urls
from imagebind_llm.rationale_writing.review import review_page
from imagebind_llm.rationale_writing.writing import preview, write_rationales

SCRIPT = Path(__file__).parent.parent / "write_rationales.py"
HEADER = "season\tepisode\tclip\ttext\tlabel\n"
LABELS = ("Complain", "Praise", "Thank", "Ask for help", "Joke", "Leave")
N = 12


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(client, "PAUSE_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def data(tmp_path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    rows = [f"S01\tE01\t{i}\twe talk about matter{i}\t{LABELS[i % 6]}\n" for i in range(N)]
    (root / "train.tsv").write_text(HEADER + "".join(rows))
    (root / "test.tsv").write_text(HEADER + "S02\tE01\t1\tthis is for testing\tJoke\n")
    return root


@pytest.fixture
def settings(data, tmp_path) -> RationaleSettings:
    output = str(tmp_path / "out" / "rationales.jsonl")
    return RationaleSettings(str(data), output, "model-a", concurrency=3, retries=3, timeout=20)


def run(settings: RationaleSettings, server: ChatServer):
    return write_rationales(replace(settings, base_url=server.url))


def lines(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def beside(settings: RationaleSettings, name: str) -> Path:
    return Path(settings.output).with_suffix(f".{name}.jsonl")


def test_every_clip_gets_a_rationale_in_the_form_that_training_reads(settings, data):
    with ChatServer() as server:
        summary = run(settings, server)
    rows = lines(settings.output)
    assert [row["key"] for row in rows] == [f"S01_E01_{i}" for i in range(N)]
    assert [row["intent"] for row in rows] == [LABELS[i % 6] for i in range(N)]
    question = next(r["messages"] for r in server.requests if "matter3" in str(r))
    assert rows[3]["rationale"] == good(question)
    assert all((row["split"], row["model"], row["prompt"], row["attempt"]) == ("train", "model-a", "1", 1) for row in rows)
    assert dict(summary.table()) == {
        "accepted, asked 1x": N, "accepted, asked 2x": 0, "accepted, asked 3x": 0, "rejected": 0, "unanswered": 0,
    }  # fmt: skip
    assert (summary.n_asked, summary.prompt_tokens, summary.completion_tokens) == (N, 100 * N, 20 * N)
    sent = server.requests[0]
    assert set(sent) == {"model", "messages"}, "sampling flags that are not given are not sent"


def test_a_second_run_asks_nothing_and_needs_no_server(settings):
    with ChatServer() as server:
        run(settings, server)
    before = Path(settings.output).read_bytes()
    summary = write_rationales(replace(settings, base_url="http://somewhere.invalid/v1"))
    assert (summary.n_asked, len(server.requests)) == (0, N)
    assert Path(settings.output).read_bytes() == before and summary.table()[0] == ("accepted, asked 1x", N)


@pytest.mark.parametrize(
    "bad",
    [
        error(429, "slow down", "rate_limit_exceeded", **{"Retry-After": "0.01"}),
        error(500, "oh"),
        error(503, "loading the model"),
        (200, "<html>busy</html>", {"Content-Type": "text/html"}),
        (200, '{"choices": [', {}),
        (200, {"choices": []}, {}),
        (200, {"object": "error"}, {}),
    ],
    ids=["429", "500", "503", "page", "broken JSON", "no choice", "no answer"],
)
def test_what_waiting_mends_is_asked_again(settings, bad):
    failed: set[str] = set()

    def answer(messages, n):
        utterance = asked_about(messages)[0]
        if utterance in failed:
            return good(messages)
        failed.add(utterance)
        return bad

    with ChatServer(answer) as server:
        summary = run(settings, server)
    assert summary.table()[0] == ("accepted, asked 1x", N) and len(server.requests) == 2 * N


def test_an_answer_that_takes_too_long_is_asked_for_again(settings):
    def answer(messages, n):
        if n == 0:
            time.sleep(1.0)
        return good(messages)

    with ChatServer(answer) as server:
        summary = run(replace(settings, timeout=0.4, limit=2), server)
    assert summary.table()[0] == ("accepted, asked 1x", 2) and len(server.requests) == 3


def test_a_question_that_never_gets_an_answer_is_listed_and_the_others_go_on(settings):
    def answer(messages, n):
        return error(400, "content policy") if asked_about(messages)[0].endswith("matter4") else good(messages)

    with ChatServer(answer) as server:
        summary = run(settings, server)
    (missing,) = [o for o in summary.outcomes if o.status != "accepted"]
    assert missing.item.example.key == "S01_E01_4" and "content policy" in missing.error
    assert (dict(summary.table())["unanswered"], len(lines(settings.output)), len(server.requests)) == (1, N - 1, N)


def test_an_endpoint_that_fails_every_question_stops_the_run(settings):
    with (
        ChatServer(lambda messages, n: error(400, "unknown parameter")) as server,
        pytest.raises(
            RationalesError, match=r"5 questions in a row got no answer; the last: the endpoint refuses .*unknown parameter"
        ),
    ):
        run(replace(settings, concurrency=1), server)
    assert len(server.requests) == 5


def test_a_rejected_answer_is_asked_for_again_with_the_reason_at_most_twice(settings):
    def answer(messages, n):
        if asked_about(messages)[0].endswith("matter0") or (asked_about(messages)[0].endswith("matter1") and len(messages) < 4):
            return "Too short, so the speaker means to complain."
        return good(messages)

    with ChatServer(answer) as server:
        summary = run(settings, server)
        again = run(settings, server)
    table = dict(summary.table())
    assert (table["accepted, asked 1x"], table["accepted, asked 2x"], table["rejected"]) == (N - 2, 1, 1)
    assert table["answers refused: length"] == 4 and again.n_asked == 0 and again.table() == summary.table()
    asked = [r["messages"] for r in server.requests if asked_about(r["messages"])[0].endswith("matter0")]
    assert [len(messages) for messages in asked] == [2, 4, 6]
    assert asked[1][2] == {"role": "assistant", "content": "Too short, so the speaker means to complain."}
    assert "This was not accepted: it has 8 words; 20 to 60 are wanted." in asked[1][3]["content"]
    rejected = lines(beside(settings, "rejected"))
    assert sorted((row["key"], row["attempt"]) for row in rejected) == [
        *[("S01_E01_0", i) for i in (1, 2, 3)],
        ("S01_E01_1", 1),
    ]
    assert {row["rule"] for row in rejected} == {"length"} and "S01_E01_0" not in {row["key"] for row in lines(settings.output)}


def test_a_refusal_an_empty_answer_and_a_cut_one_are_named(settings):
    replies = [completion(None, refusal="I cannot"), completion(""), completion("words " * 30, "length")]
    with ChatServer(lambda messages, n: (200, replies[len(messages) // 2 - 1], {})) as server:
        summary = run(replace(settings, limit=1), server)
    assert [row["rule"] for row in summary.outcomes[0].rows] == ["refused", "empty", "cut off"]


def test_when_the_quota_ends_in_the_middle_what_was_paid_for_is_kept(settings):
    with ChatServer(lambda m, n: good(m) if n < 7 else error(429, "You exceeded your quota", "insufficient_quota")) as server:
        with pytest.raises(
            RationalesError, match=r"quota or credit is used up .*fill it up and start again\. 7 rationales are in"
        ):
            run(replace(settings, concurrency=1), server)
        assert len(lines(settings.output)) == 7 and len(server.requests) == 8, "no waiting for a quota that does not come back"
        server.answer = lambda messages, n: good(messages)
        summary = run(settings, server)
    assert summary.n_asked == N - 7 and len(lines(settings.output)) == N


def command(settings: RationaleSettings, url: str) -> list[str]:
    flags = ["--data_path", settings.data_path, "--output", settings.output, "--model", settings.model, "--base_url", url]
    return [sys.executable, str(SCRIPT), *flags, "--concurrency", "3"]


@pytest.fixture
def half_way():
    """A server that answers five requests and keeps the others waiting until `open` is set."""
    opened = threading.Event()

    def answer(messages, n):
        if n >= 5:
            opened.wait(30)
        return good(messages)

    with ChatServer(answer) as server:
        server.opened = opened
        yield server
        opened.set()


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_ended_in_the_middle_and_started_again_no_request_is_answered_twice(settings, half_way, how):
    process = subprocess.Popen(
        command(settings, half_way.url),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    until(lambda: len(half_way.requests) == 8)  # five answered, three under way
    with pytest.raises(StoreError, match="another run is writing here; wait for it or give another --output"):
        run(settings, half_way)
    if how == signal.SIGKILL:
        process.send_signal(how)
        process.wait()
        half_way.opened.set()
        kept = 5
    else:
        process.send_signal(how)
        time.sleep(1.0)
        half_way.opened.set()  # what is under way when Ctrl-C is pressed is paid for: it is awaited
        assert "interrupted; every answer so far is kept" in process.communicate(timeout=60)[1]
        assert process.returncode == 2
        kept = 8
    assert len(lines(settings.output)) == kept
    half_way.answered.clear()
    already = {row["key"] for row in lines(settings.output)}
    summary = run(settings, half_way)
    asked_now = [asked_about(json.loads(messages))[0] for messages in half_way.answered]
    assert summary.n_asked == N - kept == len(asked_now)
    assert not already & {f"S01_E01_{utterance.removeprefix('we talk about matter')}" for utterance in asked_now}
    assert len({row["key"] for row in lines(settings.output)}) == N


def test_a_broken_line_is_kept_aside_and_asked_for_again(settings):
    with ChatServer() as server:
        run(settings, server)
        whole = Path(settings.output).read_text().splitlines()
        Path(settings.output).write_text("\n".join([*whole[:4], "[1, 2]", whole[4][:50]]))  # five and on: cut in the middle
        summary = run(settings, server)
    assert summary.n_asked == N - 4 and Path(settings.output).read_text().splitlines() == whole
    assert beside(settings, "aside").read_text().splitlines() == ["[1, 2]", whole[4][:50]]


def test_rationales_made_in_another_way_are_not_mixed(settings, data):
    with ChatServer() as server:
        run(settings, server)
        with pytest.raises(RationalesError, match=r"holds rationales of model model-a, prompt 1 .* would write model model-b"):
            run(replace(settings, model="model-b"), server)
        Path(settings.output).write_text('{"key": "S01_E01_1", "intent": "Praise", "rationale": "by hand"}\n')
        with pytest.raises(RationalesError, match="model None"):
            run(settings, server)
    assert len(server.requests) == N


def test_a_label_that_was_corrected_is_asked_about_again(settings, data):
    with ChatServer() as server:
        run(settings, server)
        table = (data / "train.tsv").read_text().replace("matter2\tThank", "matter2\tJoke")
        (data / "train.tsv").write_text(table)
        summary = run(settings, server)
    rows = {row["key"]: row for row in lines(settings.output)}
    assert summary.n_asked == 1 and len(rows) == N == len(lines(settings.output))
    assert rows["S01_E01_2"]["intent"] == "Joke" and lines(beside(settings, "aside"))[0]["intent"] == "Thank"


def test_splits_share_a_file_and_test_is_written_on_purpose_only(settings):
    with ChatServer() as server:
        run(settings, server)
        assert not any(asked_about(r["messages"])[0] == "this is for testing" for r in server.requests)
        run(replace(settings, splits=("test",)), server)
    assert sorted(row["split"] for row in lines(settings.output)) == ["test", *["train"] * N]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", r"OPENAI_API_KEY is not set, and https://api\.openai\.com/v1 needs a key: export OPENAI_API_KEY=\.\.\."),
        ("http://127.0.0.1:9/v1", r"http://127\.0\.0\.1:9/v1: nobody answers .*is --base_url right\?"),
    ],
)
def test_without_key_or_server_the_run_stops_at_once(settings, url, message):
    started = time.monotonic()
    with pytest.raises(RationalesError, match=message):
        write_rationales(replace(settings, base_url=url))
    assert time.monotonic() - started < 5 and lines(settings.output) == [] if Path(settings.output).exists() else True


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, "Incorrect API key"), "refuses the key .*set OPENAI_API_KEY to a valid one"),
        (
            error(404, "no model-a here"),
            "no such address or model .*check --model model-a and --base_url, which usually ends in /v1",
        ),
        (error(402, "Insufficient balance"), "the quota or credit is used up"),
        (
            error(429, "slow down", "rate_limit_exceeded", **{"Retry-After": "0"}),
            "too many requests even after 4 tries; .*lower --conc",
        ),
    ],
    ids=["key", "address", "credit", "rate"],
)
def test_what_no_waiting_mends_stops_the_run_with_the_way_out(settings, reply, message):
    with ChatServer(lambda messages, n: reply) as server, pytest.raises(RationalesError, match=message):
        run(replace(settings, concurrency=1), server)


@pytest.fixture
def script(monkeypatch):
    """write_rationales.py's main, called with a command line."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    main = importlib.import_module("write_rationales").main

    def call(command_line: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", command_line[1:])
        return main()

    return call


def test_the_script_says_what_it_did_and_writes_the_review_page(settings, script, capsys):
    with ChatServer(lambda m, n: "no\nno" if "matter5" in asked_about(m)[0] else good(m)) as server:
        assert script(command(settings, server.url)) == 0
    said = capsys.readouterr().out
    assert "    11  accepted, asked 1x" in said and "no rationale for S01_E01_5: it is not one plain paragraph" in said
    page = Path(settings.output).with_suffix(".html").read_text()
    assert page.count("<tr>") >= N and "no ¶ no" in page and "Rejected, or without an answer (1)" in page


def test_the_script_ends_with_a_sentence(settings, script, capsys):
    assert script(command(settings, "https://somewhere.invalid/v1")) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("write_rationales.py: OPENAI_API_KEY is not set, and https://some")
    )
    assert script(command(replace(settings, data_path="absent"), "")) == 2
    assert "absent: no such file or folder" in capsys.readouterr().err
    assert script([*command(settings, ""), "--dry_run"]) == 0
    assert "Nothing was sent." in capsys.readouterr().out


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


def test_agreement_is_cross_fitted_and_high_where_rationales_argue(settings, data, monkeypatch):
    monkeypatch.setattr(writing, "UNANSWERED_IN_A_ROW", 99)
    rows = [f"S01\tE01\t{i}\tit is about matter{i}\t{LABELS[i % 6]}\n" for i in range(60)]
    (data / "train.tsv").write_text(HEADER + "".join(rows))
    tells = dict(
        zip(LABELS, ("wrong again", "so well done", "kind of you", "alone cannot", "funny thing", "going now"), strict=True)
    )

    def answer(messages, n):
        return good(messages).replace("give little room", f"say {tells[asked_about(messages)[1]]} and give little room")

    with ChatServer(answer) as server:
        summary = run(replace(settings, concurrency=8), server)
    assert len(summary.agreement) == 60 and summary.agreement_rate > 0.95
    assert "Verifier agreement: 100.0 % of 60" in review_page(summary, "t", "m")
