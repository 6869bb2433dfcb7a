"""Command-line flags from the fields of a frozen dataclass: name, type, default and help stand in one place.

`parse(SomeSettings, argv)` builds the argument parser. No other module uses argparse.
"""

import argparse
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import field


def flag(default=dataclasses.MISSING, help: str = "", choices=None):
    """A dataclass field that is also a command-line flag. Without a default the flag is required."""
    return field(default=default, metadata={"help": help, "choices": choices})


def parse(settings: type, argv: list[str] | None = None, description: str = ""):
    """Parse `argv` (default: the process's own) into an instance of the dataclass `settings`.

    A field `x: int = flag(3, "...")` becomes `--x 3`; `bool` becomes a switch; `tuple[T, ...]` takes several values.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(settings)
    for spec in dataclasses.fields(settings):
        parser.add_argument(f"--{spec.name}", **_argument(spec, hints[spec.name]))
    values = vars(parser.parse_args(argv))
    try:
        return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except ValueError as error:  # what __post_init__ refuses
        parser.error(str(error))


def _argument(spec: dataclasses.Field, hint) -> dict:
    """The keyword arguments of `add_argument` for one field."""
    required = spec.default is dataclasses.MISSING
    keywords: dict = {"help": spec.metadata.get("help", "") + _shown_default(spec.default)}
    keywords |= {"required": True, "default": argparse.SUPPRESS} if required else {"default": spec.default}
    if hint is bool:
        return keywords | {"action": "store_true"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):  # Optional[T]
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is tuple:
        keywords["nargs"], hint = "+", typing.get_args(hint)[0]
    if spec.metadata.get("choices"):
        keywords["choices"] = spec.metadata["choices"]
    return keywords | {"type": hint, "metavar": None if spec.metadata.get("choices") else spec.name.split("_")[-1].upper()}


def _shown_default(default) -> str:
    """The default as it would be typed; nothing where there is none worth showing."""
    if default is dataclasses.MISSING or default is None or default is False or default in ("", ()):
        return ""
    return f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


def exit_code(
    name: str,
    command: Callable[[], int | None],
    interrupted: str = "interrupted",
    out_of_memory: str = "lower --batch_size, or pass --device cpu",
    after_os_error: str = "",
) -> int:
    """Run a command. Returns what it returns (0 for None), or 2 after one sentence on stderr, which names the rank under
    torchrun: about its input (all errors of our own are ValueErrors), or what to do once it was `interrupted`, the GPU is
    `out_of_memory`, or `after_os_error` (a full disk). Other errors are bugs, and keep their traceback."""
    try:
        return command() or 0
    except ValueError as error:
        message = str(error)
    except OSError as error:
        message = f"{error}; {after_os_error}" if after_os_error else str(error)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which this module does not import
            raise
        message = f"{error}; {out_of_memory}"
    except KeyboardInterrupt:
        message = interrupted
    rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""  # it may be wrong on one alone
    print(f"{name}{rank}: {message}", file=sys.stderr)
    return 2
