"""Flags are the fields of a dataclass: names, types, defaults, choices, and what a person sees when they are wrong."""

from dataclasses import dataclass

import pytest
import torch

from imagebind_llm.ask import AskSettings
from imagebind_llm.encoder.extraction import ExtractSettings
from imagebind_llm.explain.answers import ExplainSettings
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.training.settings import TrainSettings


@dataclass(frozen=True)
class Settings:
    path: str = flag(help="where")
    count: int = flag(0, "how many")
    rate: float | None = flag(None, "how fast")
    names: tuple[str, ...] = flag(("a", "b"), "which", ("a", "b", "c"))
    loud: bool = flag(False, "say more")


def test_values_have_the_types_of_their_fields():
    assert parse(Settings, ["--path", "x"]) == Settings("x")
    given = ["--path", "x", "--count", "3", "--rate", "0.5", "--names", "c", "a", "--loud"]
    assert parse(Settings, given) == Settings("x", 3, 0.5, ("c", "a"), True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "required: --path"),
        (["--path", "x", "--count", "many"], "invalid int value: 'many'"),
        (["--path", "x", "--names", "d"], "invalid choice: 'd'"),
        (["--path", "x", "--pace", "1"], "unrecognized arguments: --pace"),
    ],
)
def test_wrong_flags_end_with_a_sentence(given, message, capsys):
    with pytest.raises(SystemExit):
        parse(Settings, given)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no such clip"), "x.py: no such clip"),
        (OSError("disk full"), "x.py: disk full"),
        (torch.OutOfMemoryError("CUDA out of memory."), "x.py: CUDA out of memory.; lower --batch_size, or pass --device cpu"),
        (KeyboardInterrupt(), "x.py: the same command continues"),
    ],
)
def test_a_command_ends_with_a_sentence_for_what_is_no_bug_of_ours(error, message, capsys):
    def command() -> None:
        raise error

    assert exit_code("x.py", command, interrupted="the same command continues") == 2
    assert capsys.readouterr().err == f"{message}\n"
    assert exit_code("x.py", lambda: None) == 0 and exit_code("x.py", lambda: 1) == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        exit_code("x.py", lambda: (_ for _ in ()).throw(RuntimeError("shapes do not fit")))


def test_help_shows_each_default_as_it_is_typed(capsys):
    with pytest.raises(SystemExit):
        parse(Settings, ["--help"])
    page = capsys.readouterr().out
    assert "how many (default: 0)" in page and "which (default: a b)" in page and "say more\n" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batch_size", "0"], "--batch_size 0 --num_workers 2: at least 1 and at least 0"),
        (["--modalities", "text", "text"], "--modalities text text: name each once"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        parse(ExtractSettings, ["--data_path", "a", "--output_dir", "b", *given])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--instruction", " "], "--instruction is empty: say what to ask"),
        (["--max_new_tokens", "0"], "--max_new_tokens 0: at least 1"),
        (["--max_new_tokens", "-5"], "--max_new_tokens -5: at least 1"),
        (["--temperature", "-1"], "--temperature -1.0: at least 0, and finite"),
        (["--temperature", "nan"], "--temperature nan: at least 0, and finite"),
        (["--top_p", "-1"], "--top_p -1.0: above 0 and at most 1"),
        (["--top_p", "1.5"], "--top_p 1.5: above 0 and at most 1"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        parse(AskSettings, ["--instruction", "Hello", *given])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batch_size", "0"], "--batch_size 0: at least 1"),
        (["--weight_decay", "-1"], "--weight_decay -1.0: at least 0, and finite"),
        (["--blr", "nan"], "--blr nan: at least 0, and finite"),
        (["--w_critic", "inf"], "--w_critic inf: at least 0, and finite"),
        (["--epochs", "2", "--warmup_epochs", "2"], "--warmup_epochs 2 --epochs 2: the warm-up must end before the last"),
        (["--modalities", "none", "text"], "--modalities none text: name each once, and none alone"),
        (["--modalities", "text", "text"], "--modalities text text: name each once, and none alone"),
        (["--samples", "1"], "--samples 1: --baseline loo needs at least 2"),
        (["--samples", "0", "--baseline", "greedy"], "--samples 0: --baseline greedy needs at least 1"),
        (["--w_critic", "1", "--critic_start", "3", "--epochs", "3"], "the self-critical loss never begins"),
        (["--reward_weights", "intent"], "--reward_weights intent: expected NAME=NUMBER, got 'intent'"),
        (["--reward_weights", "luck=1"], "--reward_weights: luck=1; expected weights >= 0 of intent, rationale, "),
        (["--reward_weights", "intent=0"], "--reward_weights intent=0: every weight is 0"),
        (["--credit", "claim", "--reward_weights", "intent=1"], "--reward_weights intent=1: truth must weigh more"),
        (["--credit", "best", "--reward_weights", "intent=1"], "--reward_weights intent=1: truth must weigh more"),
        (["--credit", "best", "--reward_weights", "truth=1,intent=1"], "truth=1,intent=1: it uses truth only"),
        (["--credit", "local", "--reward_weights", "intent=1"], "--reward_weights intent=1: truth must weigh more"),
        (["--credit", "local", "--reward_weights", "truth=1,format=1"], "truth=1,format=1: it uses truth only"),
        (["--credit", "corrected", "--reward_weights", "intent=1"], "--reward_weights intent=1: truth must weigh more"),
        (["--credit", "corrected", "--reward_weights", "truth=1,format=1"], "truth=1,format=1: it uses truth only"),
        (["--credit", "best", "--samples", "1", "--baseline", "greedy"], "--credit best --samples 1: at least 2"),
        (["--stage", "both"], "invalid choice: 'both'"),
    ],
)
def test_training_that_cannot_be_meant_is_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        parse(TrainSettings, ["--data_path", "a", *given])
    assert message in capsys.readouterr().err


def test_one_sample_is_enough_beside_a_greedy_answer():
    assert parse(TrainSettings, ["--data_path", "a", "--samples", "1", "--baseline", "greedy"]).samples == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "pass either --clip FILE"),
        (["--clip", "a.mp4", "--data_path", "b"], "pass either --clip FILE"),
        (["--data_path", "b"], "--data_path needs either --key KEY for one clip, or --batch FILE"),
        (["--data_path", "b", "--key", "k", "--batch", "f"], "--data_path needs either --key KEY for one clip, or --batch"),
        (["--clip", "a.mp4", "--max_new_tokens", "0"], "--max_new_tokens and --batch_size must be at least 1"),
        (["--data_path", "b", "--batch", "f", "--limit", "-1"], "--limit and --best_of at least 0"),
    ],
)
def test_explanations_that_cannot_be_meant_are_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        parse(ExplainSettings, ["--checkpoint", "c", *given])
    assert message in capsys.readouterr().err
