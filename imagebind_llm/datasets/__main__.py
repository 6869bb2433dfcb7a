"""python -m imagebind_llm.datasets check PATH: what is this data set, and can it be used?"""

import sys
from pathlib import Path

from imagebind_llm.datasets.check import check

USAGE = """usage: python -m imagebind_llm.datasets check PATH [--all]

PATH   a MIntRec or MIntRec2.0 folder, or a folder of clips with a CSV/TSV (or that table itself)
--all  name everything that was found, not a handful of each kind

Reads the tables as training reads them, opens every clip (without decoding it), and says what is there, what is lost, what
is wrong and what to type next. Nothing is written.

exit code 0: usable as it is; what is called a note costs nothing
          1: usable, with the losses listed: every command runs, what is lost counts as absent
          2: not usable before the problems listed are mended: the other commands would stop at them
"""


def main(arguments: list[str]) -> int:
    words = [word for word in arguments if word != "--all"]
    if "--help" in words or "-h" in words:
        print(USAGE, end="")
        return 0
    if len(words) != 2 or words[0] != "check":
        print(USAGE, end="", file=sys.stderr)
        return 2
    try:
        report = check(Path(words[1]).expanduser())
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 2
    print(report.text(everything="--all" in arguments))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
