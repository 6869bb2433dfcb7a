"""Flags are the fields of a dataclass: names, types, defaults, choices, and what a person sees when they are wrong."""

import dataclasses
from dataclasses import dataclass

import pytest

from imagebind_llm.config import flag, parse
from imagebind_llm.settings import ExtractSettings, GenerateSettings


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


def test_help_shows_each_default_as_it_is_typed(capsys):
    with pytest.raises(SystemExit):
        parse(Settings, ["--help"])
    page = capsys.readouterr().out
    assert "how many (default: 0)" in page and "which (default: a b)" in page and "say more\n" in page


def test_flags_of_the_extraction_are_frozen():
    assert " ".join(field.name for field in dataclasses.fields(ExtractSettings)) == (
        "data_path output_dir splits encoder encoder_weights modalities batch_size num_workers device dtype window_rule "
        "clean_audio overwrite strict export_pt"
    )


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
        parse(GenerateSettings, ["--instruction", "Hello", *given])
    assert message in capsys.readouterr().err
