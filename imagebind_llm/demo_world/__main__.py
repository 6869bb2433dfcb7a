"""Write the demo world: `python -m imagebind_llm.demo_world --output_dir data/demo/clips --seed 0`.

With `--references blind` or `--references 10%` also rationales of that kind, in a file of their own: the clips, their
embeddings and the faithful rationales.jsonl stay as they are.
"""

import shlex
import sys
import time
from pathlib import Path

from imagebind_llm.config import FAITHFUL
from imagebind_llm.demo_world.cues import bayes_table
from imagebind_llm.demo_world.references import write_references
from imagebind_llm.demo_world.write import DemoWorldSettings, write_world
from imagebind_llm.flags import exit_code, parse


def main(argv: list[str] | None = None) -> int:
    settings = parse(DemoWorldSettings, argv, "Make the demo data set: clips with sound in MIntRec's layout.")
    again = "interrupted; the same command continues"
    return exit_code("imagebind_llm.demo_world", lambda: run(settings), interrupted=again)


def run(settings: DemoWorldSettings) -> None:
    """Make the clips, TSVs and rationales; print what anyone can reach on them."""
    print(bayes_table())
    started = time.perf_counter()
    made = write_world(settings)
    print(f"{len(made)} clips in {settings.output_dir}, {time.perf_counter() - started:.0f} s")
    folder = shlex.quote(settings.output_dir)
    if settings.references != FAITHFUL:
        file = write_references(Path(settings.output_dir), settings.references, made, settings.seed)
        print(f"{settings.references} references of train and dev: train on them with --rationales {shlex.quote(str(file))}")
    print(f"next: python avt_get_emb.py --data_path {folder} --output_dir runs/demo/emb --encoder imagebind_tiny")


if __name__ == "__main__":
    sys.exit(main())
