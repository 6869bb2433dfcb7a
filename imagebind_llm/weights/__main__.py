"""python -m imagebind_llm.weights check PATH: what is this file or folder, and can it be used? Exit code 0 if it can."""

import sys
from pathlib import Path

from imagebind_llm.weights.check import check


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "check":
        print("usage: python -m imagebind_llm.weights check PATH", file=sys.stderr)
        return 2
    report = check(Path(arguments[1]).expanduser())
    print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
