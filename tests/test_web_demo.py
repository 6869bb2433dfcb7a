"""The page in the browser: answers about a visitor's clip, what is refused and how, and the page itself through its port."""

import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from media_files import write_clip, write_sound
from toy_training import INTENTS, call, write_judge, write_world

import explain
from imagebind_llm.clips.container import MediaError
from imagebind_llm.config import MODALITIES
from imagebind_llm.critic.judge import JudgeError
from imagebind_llm.demo_world.cues import TYPICAL
from imagebind_llm.demo_world.published import CUE_TABLE
from imagebind_llm.explain.cue_table import CueTable
from imagebind_llm.explain.explainer import Explanation
from imagebind_llm.records import Example
from imagebind_llm.web import analysis, view
from imagebind_llm.web.analysis import MAX_CHARACTERS, ClipFacts, PageError, PageModel, Seen, WebSettings

ALL = list(MODALITIES)
WORDS = "say it 1"  # of the example clip S03_E01_1


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A trained toy model, and a data set of whose test split three clips are there."""
    root = write_world(tmp_path_factory.mktemp("world"))
    clips = root / "MIntRec" / "raw_data" / "S03" / "E01"
    clips.mkdir(parents=True)
    for i in range(3):
        write_clip(clips / f"{i}.mp4", seconds=0.6, size=(64, 48), seed=i)
    return root


@pytest.fixture(scope="module")
def settings(world) -> WebSettings:
    limits = {"max_mb": 0.2, "max_seconds": 2.0, "max_new_tokens": 4}
    return WebSettings(str(world / "run" / "best"), str(world / "MIntRec"), port=0, device="cpu", **limits)


@pytest.fixture(scope="module")
def model(settings) -> PageModel:
    return PageModel.load(settings)


@pytest.fixture
def clip(model, tmp_path) -> Path:
    return Path(shutil.copy(model.examples[1].clip, tmp_path / "mine.mp4"))


def seen_of(model: PageModel, clip: Path | None, text: str) -> Seen:
    return model.read(model.look(clip, None)[0], text)


# --- answers ----------------------------------------------------------------------------------------------------------------


def test_the_answer_is_that_of_explain_py(world, model, clip):
    found = model.answer(seen_of(model, clip, "hello"), ALL)
    flags = {"checkpoint": world / "run" / "best", "clip": clip, "max_new_tokens": 4, "device": "cpu"}
    printed = call(explain.main, **flags, text="hello").out
    assert printed.splitlines()[0] == f"Intent:     {found.intent} ({float(found.probabilities.max()):.2f})"
    assert f"Rationale:  {found.rationale}" in printed


def test_without_a_modality_the_answer_is_as_if_it_had_never_been_there(model, clip):
    seen = seen_of(model, clip, WORDS)
    model.answer(seen, ALL)
    others = model.without(seen, ALL)
    assert list(others) == ALL
    for name, other in others.items():
        alone = Example("x", "all", None, "" if name == "text" else WORDS)
        present = torch.tensor([[modality != name for modality in MODALITIES]])
        [expected] = model.explainer.explain([alone], seen.vectors, present, 4)
        torch.testing.assert_close(other.probabilities, expected.probabilities, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(other.probabilities, seen.answers[MODALITIES].probabilities, atol=1e-6), name
        assert model.answer(seen, [kept for kept in ALL if kept != name]) is other, "unticking it costs nothing more"
    assert model.without(seen, ["audio"]) == {}


def test_a_clip_is_embedded_once_and_other_words_alone_anew(model, clip):
    seen, inputs = model.look(clip, None)
    assert set(inputs) == {"audio", "vision"}
    first = model.read(seen, WORDS)
    model.answer(first, ALL)
    clip.unlink()
    again, inputs = model.look(clip, first)
    assert again is first and inputs is None
    other = model.read(again, "  quite\n another thing ")
    assert other.text == "quite another thing" and not other.answers
    assert torch.equal(other.vectors[:, 1:], first.vectors[:, 1:]) and not torch.equal(other.vectors[:, 0], first.vectors[:, 0])
    assert model.read(other, "").modalities == ("audio", "vision")
    assert seen_of(model, None, "words alone").modalities == ("text",)


def test_a_modality_that_cannot_be_used_is_named_and_left_out(model, tmp_path):
    write_clip(tmp_path / "silent.mp4", seconds=0.6, size=(64, 48), audio=False)
    seen = seen_of(model, tmp_path / "silent.mp4", "hello")
    assert seen.modalities == ("text", "vision") and seen.notes == ("audio is not used: no audio stream",)
    assert "Audio is not used: no audio stream." in view.notes_of(seen)


def test_claims_are_held_against_the_whole_clip_also_by_an_answer_that_was_not_to_look(world, model, clip, tmp_path):
    unjudged = answered(model, seen_of(model, clip, WORDS), ALL)
    assert model.check is None and "The judge is off" in view.answer_block(unjudged, ALL, model)
    judged = PageModel.load(replace(model.settings, judge=str(write_judge(tmp_path / "judge", world / "emb"))))
    seen = seen_of(judged, clip, WORDS)
    said = "We see a broad smile & a deep frown"
    claims = judged.claims(seen, said)
    assert [claim.text for claim in claims] == [said] and claims[0].p not in (0.5, 0, 1)
    for chosen in (MODALITIES, ("text",)):
        seen = answered(judged, seen, chosen)
        seen.answers[chosen] = replace(seen.answers[chosen], rationale=said)
        page = view.answer_block(seen, chosen, judged)
        assert f'<mark class="judged {claims[0].verdict}" title=' in page and f"P {claims[0].p:.2f}" in page
        assert "a broad smile &amp; a deep frown" in page and "Checked against picture and sound by a judge" in page
    words = view.answer_block(answered(judged, seen_of(judged, None, "hello"), ALL), ("text",), judged)
    assert "Nothing is known of this clip&#x27;s picture and sound" in words and "could be judged" in words


def answered(model: PageModel, seen: Seen, chosen) -> Seen:
    model.answer(seen, chosen)
    return seen


def test_a_judge_that_cannot_serve_is_refused_before_anyone_comes(model, tmp_path):
    with pytest.raises(JudgeError, match="no judge can be read"):
        PageModel.load(replace(model.settings, judge=str(tmp_path)))


# --- what is refused --------------------------------------------------------------------------------------------------------


def unusable(name: str, folder: Path) -> Path:
    path = folder / f"{name}.mp4"
    if name == "long":
        write_clip(path, seconds=2.4, size=(16, 16))
    elif name == "broken":
        path.write_bytes(b"no media at all" * 99)
    elif name == "big":
        path.write_bytes(bytes(210_000))
    elif name == "brief":  # sound alone, and less than one frame of it
        write_sound(path.with_suffix(".wav"), np.zeros((1, 100), np.int16), 16000, "pcm_s16le", "s16")
        path = path.with_suffix(".wav").rename(path)
    return path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("broken", "broken.mp4 cannot be opened as a media file"),
        ("long", "long.mp4 lasts longer than 2 s"),
        ("big", "big.mp4 has 0.2 MB; at most 0.2 MB"),
        ("gone", "gone.mp4 is no longer on the server"),
        ("brief", "Nothing of brief.mp4 can be used"),
    ],
)
def test_a_file_of_no_use_gets_a_sentence_that_does_not_tell_where_it_lies(model, tmp_path, name, says):
    with pytest.raises(PageError) as refused:
        model.look(unusable(name, tmp_path), None)
    sentence = str(refused.value)
    assert sentence.startswith(says) and sentence.endswith(".") and str(tmp_path) not in sentence


def test_a_reason_that_names_a_path_is_told_with_the_name_alone(model, clip, monkeypatch):
    def gone(path, at_most):
        raise MediaError(f"no such file: {path}")

    monkeypatch.setattr(analysis, "clip_seconds", gone)
    with pytest.raises(PageError, match=r"^mine\.mp4 no such file: mine\.mp4; expected a clip"):
        model.look(clip, None)


def test_what_leaves_nothing_to_look_at_is_refused(model, clip):
    with pytest.raises(PageError, match="nothing to look at"):
        model.answer(seen_of(model, None, " \n"), ALL)
    with pytest.raises(PageError, match="choose at least one of text, audio, vision"):
        model.answer(seen_of(model, clip, WORDS), [])
    with pytest.raises(PageError, match=f"has {MAX_CHARACTERS + 1} characters"):
        seen_of(model, None, "x" * (MAX_CHARACTERS + 1))


def test_limits_that_cannot_be_meant_are_refused():
    for wrong in ({"max_mb": 0.0}, {"max_seconds": float("inf")}, {"port": 70000}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=f"--{next(iter(wrong))}"):
            WebSettings("best", **wrong)


# --- what is shown ----------------------------------------------------------------------------------------------------------


def explained(intent: str, p: float, criticised: float = 0.9) -> Explanation:
    """A sure answer among two labels, Praise and Taunt."""
    probabilities = torch.tensor([p, 1 - p]) if intent == "Praise" else torch.tensor([1 - p, p])
    return Explanation("x", probabilities, intent, f"why <{intent}>", True, torch.tensor([criticised, 1 - criticised]))


def test_the_encoders_inputs_come_back_as_pictures(model, clip):
    _, inputs = model.look(clip, None)
    shown = view.inputs_block(inputs)
    frames = re.findall(r"data:image/jpeg;base64,([^\"]+)", shown)
    windows, counts = inputs["vision"]
    assert len(frames) == 2 * len(windows) and shown.count("data:image/svg+xml") == len(inputs["audio"][0])
    assert all(base64.b64decode(frame).startswith(b"\xff\xd8") for frame in frames)
    assert sum(counts) == 15 and f"{counts[0]} of 15 views" in shown and str(clip.parent) not in shown


def test_the_comparison_gives_the_probability_of_the_first_intent_and_its_change():
    answers = {("text", "audio"): explained("Praise", 0.9), ("text", "audio", "vision"): explained("Praise", 0.95)}
    seen = Seen("", "", torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool), answers=answers)
    without = {"text": explained("Taunt", 0.8), "audio": explained("Praise", 0.85)}
    page = view.changes_block(seen, ("text", "audio"), without, ("Praise", "Taunt"))
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in page.split("<tr>")[2:]]
    assert [row[:4] for row in rows] == [
        ["text + audio (above)", "Praise", "90.0", "–"],
        ["text + audio + vision (all)", "Praise", "95.0", "5.0"],
        ["without text", "Taunt", "20.0", "-70.0"],
        ["without audio", "Praise", "85.0", "-5.0"],
    ]
    assert rows[2][4] == "why &lt;Taunt&gt;", "what a model writes is no HTML"


def test_the_consistency_flag_has_three_states():
    taxonomy = SimpleNamespace(labels=("Praise", "Taunt"))
    sure = SimpleNamespace(taxonomy=taxonomy, verifier=object(), calibration=SimpleNamespace(alpha=0.3))
    assert "leaves the intent at Praise" in view.consistency(explained("Praise", 0.9, 0.8), sure)
    assert "speaks for Taunt rather than Praise" in view.consistency(explained("Praise", 0.9, 0.2), sure)
    unasked = SimpleNamespace(taxonomy=taxonomy, verifier=object(), calibration=SimpleNamespace(alpha=0.0))
    assert "not checked" in view.consistency(explained("Praise", 0.9, 0.8), unasked)


def test_claims_are_held_against_the_truth():
    said = "We see a broad smile and open palms and hear a flat pitch."
    page = view.claim_chips(said, {"expression": "smile", "gesture": "at rest", "pitch": "flat"}, CUE_TABLE, ("text", "vision"))
    assert re.findall(r'class="claim (\w+)">(.*?)</span>', page) == [
        ("true", "expression: smile ✓"),
        ("false", "gesture: open palms ✗ it is at rest"),
        ("true", "pitch: flat (guessed) ✓"),
    ]


def test_an_example_clip_is_recognised_while_its_words_are_its_own(model, clip):
    assert [example.intent for example in model.examples] == list(INTENTS)
    seen = seen_of(model, clip, WORDS)
    cues = {cue: value for cue, value in TYPICAL[INTENTS[1]].items() if cue != "family"}
    assert seen.truth == ClipFacts(WORDS, INTENTS[1], cues, CueTable.beside(Path(model.settings.data_path)))
    assert seen.truth.table is not None
    assert model.read(seen, "other words").truth is None


# --- the page itself --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uploads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def address(model, settings, uploads):
    pytest.importorskip("gradio")
    import web_demo

    page, address = web_demo.serve(model, settings, uploads)
    yield address
    page.close()


@pytest.fixture
def visitor(address):
    from gradio_client import Client

    return Client(address, verbose=False)


def test_only_uploads_are_ever_removed(tmp_path):
    import web_demo

    uploads = tmp_path / "uploads"
    for place in (uploads / "a" / "1.mp4", uploads / "2.mp4", tmp_path / "3.mp4"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        web_demo.remove(place, uploads)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "3.mp4", uploads]


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_visitor_uploads_a_clip_and_switches_a_modality_off(visitor, model, clip, uploads):
    from gradio_client import handle_file

    note, intent, answer, comparison, evidence = visitor.predict(handle_file(clip), WORDS, ALL, api_name="/explain")
    assert intent["label"] in model.explainer.taxonomy.labels and len(intent["confidences"]) == 5
    assert "Why" in answer and INTENTS[1] in answer and comparison.count("without ") == 3 and "image/jpeg" in evidence
    assert not files_in(uploads), "the clip is removed once it is read"
    _, less, _, fewer, *_ = visitor.predict(["text", "vision"], api_name="/again")
    assert "text + audio + vision (all)" in fewer and fewer.count("without ") == 2
    assert less["confidences"] != intent["confidences"]
    for shown in (note, answer, comparison, evidence, fewer):
        assert str(uploads) not in shown and str(clip.parent) not in shown


@pytest.mark.parametrize(("name", "says"), [("broken", "cannot be opened"), ("long", "lasts longer than 2 s")])
def test_a_visitor_with_a_file_of_no_use_reads_a_sentence(visitor, tmp_path, uploads, name, says):
    from gradio_client import handle_file

    upload = handle_file(unusable(name, tmp_path))
    note, intent, answer, comparison, _ = visitor.predict(upload, WORDS, ALL, api_name="/explain")
    assert says in note and f"{name}.mp4" in note and "Traceback" not in note and str(uploads) not in note
    assert not answer and not comparison and not (intent or {}).get("label") and not files_in(uploads)


def test_a_file_that_is_too_large_is_not_even_stored(visitor, tmp_path, uploads):
    from gradio_client import handle_file

    with pytest.raises(Exception, match=r"(?i)size|413"):
        visitor.predict(handle_file(unusable("big", tmp_path)), WORDS, ALL, api_name="/explain")
    assert not files_in(uploads)


def test_what_nobody_foresaw_is_logged_and_not_told(visitor, model, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("/a/secret/place")

    monkeypatch.setattr(model, "answer", fails)
    note, *_ = visitor.predict(None, WORDS, ALL, api_name="/explain")
    assert "Something went wrong" in note and "secret" not in note and "/a/secret/place" in caplog.text


def asked_for(address: str, path: str) -> str:
    """The server's answer to one who claims that `path` is an upload: its events, as they come."""
    [explain] = [f for f in httpx.get(f"{address}config").json()["dependencies"] if f["api_name"] == "explain"]
    clip = {"path": path, "meta": {"_type": "gradio.FileData"}}
    call = {"data": [clip, WORDS, ALL, None], "fn_index": explain["id"], "session_hash": "thief"}
    assert httpx.post(f"{address}gradio_api/queue/join", json=call).status_code == 200
    with httpx.stream("GET", f"{address}gradio_api/queue/data?session_hash=thief", timeout=20) as answer:
        return answer.read().decode().replace(": ", ":")


def test_no_other_file_can_be_had_or_explained(address, world, model):
    outside = world / "MIntRec" / "test.tsv"
    for path in (outside, Path(__file__), model.examples[0].clip, "/etc/hostname"):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code == 403, path
    events = asked_for(address, str(model.examples[0].clip))
    assert '"success":false' in events and "confidences" not in events and str(world) not in events
    assert model.examples[0].clip.is_file()


def test_the_page_names_no_path_of_the_server_and_asks_nobody_else(address, world):
    page, config = httpx.get(address).text, httpx.get(f"{address}config").text
    for place in (str(world), str(Path(__file__).parent.parent)):
        assert place not in page and place not in config
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?://[^"]+)"', page)
    assert not [url for url in loaded if not url.startswith(address)]


def test_a_model_of_the_words_alone_takes_no_file(model):
    words = SimpleNamespace(modalities=("none",), store_identity=None)
    alone = PageModel(words, None, replace(model.settings, data_path="nowhere"), [])
    assert alone.modalities == ("text",) and not alone.takes_files
    assert alone.read(alone.look(None, None)[0], "hello").modalities == ("text",)
