"""Writing rationales: nothing is asked twice, nothing paid for is lost, what is refused is asked for again."""

import importlib
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the extra `rationales` is not installed")
from chat_server import ChatServer, asked_about, completion, good
from rationale_run import HEADER, LABELS, N, beside, lines, make_pauses_short, run, settings_for, write_data

from imagebind_llm.rationale_writing import writing
from imagebind_llm.rationale_writing.client import RationalesError, RationaleSettings
from imagebind_llm.rationale_writing.review import review_page
from imagebind_llm.rationale_writing.writing import write_rationales

SCRIPT = Path(__file__).parent.parent / "write_rationales.py"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    make_pauses_short(monkeypatch)


@pytest.fixture
def data(tmp_path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def settings(data) -> RationaleSettings:
    return settings_for(data)


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
def test_ended_in_the_middle_and_started_again_no_request_is_answered_twice(settings, half_way, script, capsys, how):
    process = subprocess.Popen(
        command(settings, half_way.url),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    until(lambda: len(half_way.requests) == 8)  # five answered, three under way
    assert script(command(settings, half_way.url)) == 2
    assert "another run is writing here; wait for it or give another --output" in capsys.readouterr().err
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
