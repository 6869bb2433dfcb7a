"""python -m imagebind_llm.check PATH: what is this data set or weights file, and can it be used?"""

import sys
from pathlib import Path

from imagebind_llm.check import datasets, weights
from imagebind_llm.flags import exit_code

USAGE = """usage: python -m imagebind_llm.check PATH [--all]

PATH   a data set: a MIntRec or MIntRec2.0 folder, a folder of clips with a CSV/TSV, or that table itself
       or weights: ImageBind, an adapter, or a LLaMA as a folder or a .gguf file
--all  name everything that was found, not a handful of each kind

Data sets: reads the tables as training reads them, opens every clip (without decoding it), and says what is there, what is
lost, what is wrong and what to type next. Weights: reads names and shapes, not the numbers. Nothing is written.

exit code 0: usable as it is; what is called a note costs nothing
          1: usable, with the losses listed: every command runs, what is lost counts as absent
          2: not usable before the problems listed are mended: the other commands would stop at them
"""
TABLES = {".csv", ".tsv"}
WEIGHTS_BESIDE = ("params.json", "config.json", "*/params.json", "adapter_config.json")


def is_weights(path: Path) -> bool:
    """Whether a path is a folder of a LLaMA or a file that is no table; everything else is looked at as a data set."""
    if path.is_dir():
        return any(next(path.glob(name), None) for name in WEIGHTS_BESIDE)
    return path.is_file() and path.suffix not in TABLES


def main(arguments: list[str]) -> int:
    words = [word for word in arguments if word != "--all"]
    if "--help" in words or "-h" in words:
        print(USAGE, end="")
        return 0
    if len(words) != 1:
        print(USAGE, end="", file=sys.stderr)
        return 2
    path, everything = Path(words[0]).expanduser(), "--all" in arguments
    stopped = "interrupted; nothing was written"
    return exit_code("imagebind_llm.check", lambda: shown(path, everything), interrupted=stopped)


def shown(path: Path, everything: bool) -> int:
    """Print the report on a path; its exit code."""
    report = weights.check(path) if is_weights(path) else datasets.check(path)
    print(report.text(everything))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
