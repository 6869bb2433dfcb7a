"""make demo, stage by stage: what is done is skipped, what fails says so and continues; and the page that it ends with."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "data" / "demo"))

import make_report  # noqa: E402
import repaired  # noqa: E402
import run  # noqa: E402
from toy_training import read_lines  # noqa: E402

from imagebind_llm.critic.judge import Figures  # noqa: E402
from imagebind_llm.demo_world import write  # noqa: E402
from imagebind_llm.demo_world.cues import TYPICAL  # noqa: E402
from imagebind_llm.demo_world.phrases import PHRASES  # noqa: E402
from imagebind_llm.demo_world.write import DemoWorldSettings  # noqa: E402
from imagebind_llm.explain.faithfulness import Change  # noqa: E402
from imagebind_llm.explain.scoring import Rationale, read_rationales  # noqa: E402
from imagebind_llm.flags import parse  # noqa: E402
from imagebind_llm.records import Example  # noqa: E402
from imagebind_llm.training.settings import TrainSettings  # noqa: E402


def append(name: str) -> str:
    """A stage's command: add a line to a file."""
    return f"""-c "import time; time.sleep(0.1); open('{name}', 'a').write('again\\\\n')" """


KILLS = """-c "import os, signal; open('one', 'w'); os.kill(os.getppid(), signal.SIGKILL)" """


@pytest.fixture
def stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "RUNS", "runs")

    def choose(*commands: tuple[str, str]) -> None:
        monkeypatch.setattr(run, "STAGES", [run.Stage(name, "tries it", command, name) for name, command in commands])

    return choose


def test_stages_run_once_unless_their_command_their_result_or_one_before_them_changed(stages, capsys):
    stages(("one", append("one")), ("two", append("two")))
    assert run.main() == 0 and run.main() == 0
    assert "[1/2] one: there already, one" in capsys.readouterr().out
    assert Path("one").read_text() == Path("two").read_text() == "again\n"
    stages(("one", append("one")), ("two", append("two") + "more"))
    assert run.main() == 0
    assert Path("one").read_text() == "again\n" and Path("two").read_text() == "again\n" * 2
    Path("one").unlink()
    file = Path("runs/stages.json")
    file.write_text(json.dumps({name: stage | {"seconds": 100.0} for name, stage in json.loads(file.read_text()).items()}))
    assert run.main() == 0
    assert Path("one").read_text() == "again\n" and Path("two").read_text() == "again\n" * 3
    record = json.loads(file.read_text())
    assert record["two"]["done"] and record["two"]["command"].endswith("more")
    assert record["two"]["seconds"] >= 100 > record["one"]["seconds"] > 0  # the one was made anew, the other went on


def test_one_gpu_gets_one_rank_and_the_same_rows_a_step_and_what_two_have_done_stays_done(stages, monkeypatch, capsys):
    def training(name: str) -> str:
        wanted = "sys.argv[2], int(sys.argv[2]) * int(sys.argv[4])"
        return f"""-c "import sys; print({wanted}, file=open('{name}', 'a'))" {run.RANKS} --batch_size 8"""

    stages(("one", training("one")))
    monkeypatch.setattr(run, "ranks_here", lambda: 2)
    assert run.main() == 0
    record = json.loads(Path("runs/stages.json").read_text())
    stages(("one", training("one")), ("two", training("two")))
    monkeypatch.setattr(run, "ranks_here", lambda: 1)
    assert run.main() == 0
    said = capsys.readouterr().out
    assert "one: there already" in said and "--nproc_per_node 1 --batch_size 16" in said
    assert Path("one").read_text() == "2 16\n" and Path("two").read_text() == "1 16\n"
    assert json.loads(Path("runs/stages.json").read_text())["one"] == record["one"]


def test_every_training_stage_can_be_typed_for_one_rank():
    trainings = [stage for stage in run.STAGES if "engine_finetune.py" in stage.command]
    rows = {"captions": "16", "supervised": "8", "self-critical": "8"}
    assert [stage.name for stage in trainings] == list(rows)
    for stage in trainings:
        words = run.typed(stage, 1, bfloat16=False).split()
        assert [words[words.index(flag) + 1] for flag in ("--nproc_per_node", "--batch_size")] == ["1", rows[stage.name]]
        parse(TrainSettings, words[words.index("engine_finetune.py") + 1 :])  # flags that go together
        assert run.typed(stage, 2, bfloat16=False) == stage.command
        assert run.typed(stage, 2, bfloat16=True) == f"{stage.command} --dtype bfloat16"
        assert int(run.environment(stage, 1)["OMP_NUM_THREADS"]) == (os.cpu_count() or 2)


@pytest.mark.parametrize(("word", "code", "said"), [("--help", 0, "captions: first stage"), ("--seed", 2, "unrecognized")])
def test_words_start_nothing(word, code, said, tmp_path):
    command = [sys.executable, str(ROOT / "data" / "demo" / "run.py"), word]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout + done.stderr and not list(tmp_path.iterdir())


def test_a_stage_that_fails_stops_the_demo_and_is_tried_again(stages, capfd):
    stages(("one", append("one")), ("two", "-c 'import sys; sys.exit(\"no room\")'"), ("three", append("three")))
    assert run.main() == 1
    said = capfd.readouterr().err
    assert "no room" in said and "stage two failed for the reason above; mend it, then: make demo" in said
    assert not Path("three").exists() and not json.loads(Path("runs/stages.json").read_text())["two"]["done"]
    stages(("one", append("one")), ("two", append("two")), ("three", append("three")))
    assert run.main() == 0
    assert Path("one").read_text() == "again\n" and Path("three").exists()


def test_a_stage_that_was_killed_is_not_done_though_its_result_is_there(stages):
    script = "import run; run.RUNS = 'runs'; run.STAGES = [run.Stage('one', 'tries it', %r, 'one')]; run.main()"
    Path("runs").mkdir()
    Path("runs/stages.json").write_text(json.dumps({"one": {"command": KILLS, "seconds": 1.0, "done": True}}))
    subprocess.run([sys.executable, "-c", script % KILLS], env=os.environ | {"PYTHONPATH": str(ROOT / "data" / "demo")})
    assert Path("one").exists() and json.loads(Path("runs/stages.json").read_text())["one"]["done"] is False


def test_the_real_stages_are_commands_of_ours():
    modules = {"imagebind_llm.demo_world", "imagebind_llm.explain.faithfulness"}
    known = {path.name for path in ROOT.glob("*.py")} | {"data/demo/make_report.py"} | modules
    for stage in run.STAGES:
        words = stage.command.split()
        assert any(word in known for word in words), stage.command
        assert stage.result.startswith(("runs/demo/", "data/demo/clips/"))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Eight test clips, and answers about them: references but for the first, whose face is told wrong."""
    root = tmp_path_factory.mktemp("demo")
    write.write_world(DemoWorldSettings(str(root / "clips"), workers=2, train=24, dev=8, test=8))
    rows = []
    for one in read_rationales(root / "clips" / "rationales.jsonl").values():
        if one.key.startswith("S03"):
            said = {"key": one.key, "intent": one.intent, "rationale": one.rationale, "probability": 0.9, "consistent": True}
            rows.append(said | {"runners_up": [["Joke", 0.1]], "criticised": one.intent})
    truth = read_rationales(root / "clips" / "rationales.jsonl")[rows[0]["key"]].cues
    wrong = "an angry frown" if truth["expression"] != "frown" else "a broad smile"
    rows[0] |= {"rationale": f"We see {wrong} & <more>.", "intent": "Joke", "consistent": False, "criticised": "Greet"}
    (root / "runs").mkdir()
    (root / "runs" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_both_later_stages_learn_blind_references_beside_captions_and_each_starts_from_the_one_before():
    named = {stage.name: stage.command for stage in run.STAGES}
    assert "--references blind" in named["clips"]
    for name, start in (("supervised", "pretrain"), ("self-critical", "supervised")):
        assert "rationales-blind.jsonl" in named[name] and "captions.json --w_caption" in named[name]
        assert f"--pretrained_path runs/demo/{start}/best" in named[name]
    explained = [name for name, command in named.items() if "--checkpoint runs/demo/itsl/best" in command]
    assert explained == ["explanations", "swaps"]


def test_the_page_underlines_true_and_false_claims_and_holds_its_clips(world):
    path = make_report.write(make_report.ReportSettings(str(world / "clips"), str(world / "runs")))
    page = path.read_text()
    assert page.count("data:video/mp4;base64,") == page.count("data:image/jpeg;base64,") == 3  # of eight
    assert page.count('<u class="false"') == 2 and "&amp; &lt;more&gt;." in page  # one claim, one in the legend
    assert page.count('<u class="true"') > 4 and '<mark class="judged' not in page
    assert "Careful: the rationale speaks for Greet." in page
    assert "http://" not in page and "https://" not in page
    assert "not recorded: the stages were not run" in page
    assert "atypical P" in page and "template of the intents of answers" in page


def answer_of(row: dict, rationale: str, p: float) -> dict:
    """Another answer to a row's clip: one claim, of which a judge thinks this."""
    claim = {"text": rationale.strip("."), "start": 0, "end": len(rationale) - 1, "p": p}
    return row | {"rationale": rationale, "claims": [claim]}


def test_before_and_after_are_shown_for_clips_chosen_by_the_rule(world, tmp_path):
    """Of four clips the first says no more what was false, the second is spoilt, the others mended: these come first."""
    shutil.copytree(world / "runs", tmp_path, dirs_exist_ok=True)
    known = {row["key"]: row for row in read_lines(world / "clips" / "rationales.jsonl")}
    unusual = {key: [c for c, v in row["cues"].items() if v != TYPICAL[row["intent"]][c]] for key, row in known.items()}
    rows = [row for row in read_lines(tmp_path / "answers.jsonl") if unusual[row["key"]]][-4:]
    said: dict[str, list[dict]] = {"before": [], "after": []}
    for row, change in zip(rows, ("silenced", "spoilt", "mended", "mended"), strict=True):
        truth, usual = known[row["key"]]["cues"], TYPICAL[known[row["key"]]["intent"]]
        cue = unusual[row["key"]][0]
        true, false = PHRASES[cue][truth[cue]][0], PHRASES[cue][usual[cue]][0]
        said["before"].append(answer_of(row, f"We find {true if change == 'spoilt' else false}.", 0.1))
        then = {"silenced": "nothing", "spoilt": false, "mended": true}[change]
        said["after"].append(answer_of(row, f"We find {then} <now>.", 0.9))
    for name, some in said.items():
        (tmp_path / repaired.FILES[name]).write_text("".join(json.dumps(row) + "\n" for row in some))
    page = make_report.write(make_report.ReportSettings(str(world / "clips"), str(tmp_path))).read_text()
    section = page.split("Repaired by self-criticism</h2>")[1].split("<h2>")[0]
    assert [rows[i]["key"] for i in (2, 3, 0)] == re.findall(r"<code>(\w+)</code>", section)
    assert "4 got another rationale" in section and "In 2 what was claimed of atypical cues" in section
    assert "in 1 the other way round" in section and "then the first others" in section
    first = section.split('class="clip turned"')[1]
    before, after = first.split("<h4>After</h4>")
    assert 'class="judged false"' in before and '<u class="false">' in before and "<small>[" in before
    assert 'class="judged true"' in after and '<u class="true">' in after and "&lt;now&gt;" in after
    assert "not made yet" in section, "of the judge that is not there"


def test_where_nothing_has_changed_that_is_said():
    asked, same = [Example("a", "test", None, "", "Joke")], {"a": {"rationale": "We find nothing."}}
    chosen, rule = repaired.picked(asked, same, same, {"a": Rationale("a", "Joke", "", {"head": "tilted"})})
    assert not chosen and "All 1 rationales are the same" in rule


def test_how_good_the_judge_is_is_shown_beside_its_colours(tmp_path):
    dev = Figures(90, 0.965, 0.947, {"text": 0.5, "vision": 0.951}, ["vision"], 0.87, 0.13, 1.0)
    state = {"kind": "fitted", "source": "captions", "modalities": ["vision"], "dev": asdict(dev)}
    (tmp_path / "judge.json").write_text(json.dumps(state))
    shown = " ".join(map(str, repaired.judge(tmp_path)))
    assert "Checked against picture by a judge" in shown and "nothing by words, which is switched off" in shown
    assert re.findall(r"<td>(.*?)</td>", shown) == ["all it looks at", "0.965", "0.947", "by picture alone", "–", "0.951"]


def test_a_world_of_another_version_has_no_page(world, tmp_path):
    shutil.copy(world / "clips" / "test.tsv", tmp_path)
    (tmp_path / "world.json").write_text('{"seed": 0, "code": "of version 1"}')
    with pytest.raises(make_report.DataError, match="expected the demo world of version 2"):
        make_report.write(make_report.ReportSettings(str(tmp_path), str(world / "runs")))


def test_a_page_without_answers_says_what_to_type(world, tmp_path):
    settings = make_report.ReportSettings(str(world / "clips"), str(tmp_path))
    with pytest.raises(make_report.DataError, match="make it with explain"):
        make_report.write(settings)


def test_times_of_the_stages_and_what_follows_a_swap_are_shown(world, tmp_path):
    shutil.copytree(world / "runs", tmp_path, dirs_exist_ok=True)
    (tmp_path / "stages.json").write_text(json.dumps({"clips": {"command": "x.py", "seconds": 90.0, "done": True}}))
    change = Change(
        "vision", "swap", 32, 64, own_changed=0.75, own_follows=0.625, others_kept=0.8, intent_changed=0, text_moved=0.5
    )
    (tmp_path / "swaps.json").write_text(json.dumps([asdict(change)]))
    page = make_report.write(make_report.ReportSettings(str(world / "clips"), str(tmp_path))).read_text()
    assert "<td>1.5</td>" in page and "Together 1.5 minutes" in page
    assert "<td>0.625</td>" in page and "The first 32 test clips" in page
