"""An endpoint that fails: what waiting mends is asked again, what it does not mend ends the run with the way out."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the extra `rationales` is not installed")
from chat_server import ChatServer, asked_about, error, good
from rationale_run import N, lines, make_pauses_short, run, settings_for, write_data

from imagebind_llm.rationale_writing.client import RationalesError, RationaleSettings
from imagebind_llm.rationale_writing.writing import write_rationales


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    make_pauses_short(monkeypatch)


@pytest.fixture
def data(tmp_path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def settings(data) -> RationaleSettings:
    return settings_for(data)


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
