"""The demo, stage by stage: clips -> embeddings -> classifier -> training in three steps -> explanations -> one report.

The rationales that it learns from are as a language model writes them from the words alone: a third of their claims is false.

    python data/demo/run.py            (or: make demo)

A stage whose result is there is skipped unless one before it had to run; one that was interrupted continues, and one that fails
says why: its own last lines, and what to type next. runs/demo/stages.json holds how long each took. Training takes two ranks
where there are two GPUs or, without any, two cores, else one rank; as many rows a step either way, so that one may continue
what the other began. Where the processor multiplies in bfloat16, the language model runs in it.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from imagebind_llm.distributed import cpu_multiplies_bfloat16, ranks_here
from imagebind_llm.files import write_json
from imagebind_llm.flags import parse

CLIPS, RUNS = "data/demo/clips", "runs/demo"
EMB = f"--emb_path {RUNS}/emb"
RANKS = "--nproc_per_node 2"  # as written below and remembered, and rows for each; `typed` says it for this machine
TORCHRUN = f"-m torch.distributed.run {RANKS} engine_finetune.py"
TRAIN = f"{TORCHRUN} {EMB} --trainable all --warmup_epochs 0.2"
BLIND = f"--data_path {CLIPS} --rationales {CLIPS}/rationales-blind.jsonl --captions {CLIPS}/captions.json --w_caption 1"
LLAMA = re.compile(r"(engine_finetune|explain)\.py")  # run the language model, in either precision
EXPLAIN = f"explain.py --data_path {CLIPS} {EMB} --judge {RUNS}/itsl/best"


@dataclass(frozen=True)
class Stage:
    """A command (what follows `python`, on two ranks), what it does, and the file that it ends with."""

    name: str
    what: str
    command: str
    result: str


STAGES = (
    Stage(
        "clips",
        "drawing and voicing 1,200 clips of 20 intents; rationales by one who saw them, and by one who did not (blind)",
        f"-m imagebind_llm.demo_world --output_dir {CLIPS} --seed 0 --references blind",
        f"{CLIPS}/rationales-blind.jsonl",
    ),
    Stage(
        "embeddings",
        "text, sound and pictures of every clip through the encoder",
        f"avt_get_emb.py --data_path {CLIPS} --output_dir {RUNS}/emb --encoder imagebind_tiny",
        f"{RUNS}/emb/manifest-0.json",
    ),
    Stage(
        "classifier",
        "intents from embeddings alone, every subset of text, sound and pictures",
        f"classifier.py --data_path {CLIPS} {EMB} --output_dir {RUNS}/probe --ablate --seeds 0 1 2",
        f"{RUNS}/probe/report.html",
    ),
    Stage(
        "captions",
        "first stage of training: the language model learns to say what is seen and heard",
        f"{TRAIN} --stage pretrain --data_path {CLIPS}/captions.json --output_dir {RUNS}/pretrain --batch_size 8"
        " --adapter_layer 8 --adapter_len 1 --lora_rank 8 --bridge_width 2 --epochs 6 --lr 3e-3 --gate_lr 20",
        f"{RUNS}/pretrain/best",
    ),
    Stage(
        "supervised",
        "second stage: intent and rationale together, beside captions, so that it goes on looking",
        f"{TRAIN} {BLIND} --output_dir {RUNS}/supervised --pretrained_path {RUNS}/pretrain/best --batch_size 4"
        " --epochs 3 --lr 1e-3 --gate_lr 20",
        f"{RUNS}/supervised/results.json",
    ),
    Stage(
        "self-critical",
        "third stage: answers are sampled, and each claim is paid for what a judge sees in the clip (64 clips)",
        f"{TRAIN} {BLIND} --output_dir {RUNS}/itsl --pretrained_path {RUNS}/supervised/best --batch_size 4"
        " --credit claim --w_critic 8 --w_rationale 0.2 --reward_weights truth=1 --limit 64 --epochs 3 --lr 3e-4",
        f"{RUNS}/itsl/results.json",
    ),
    Stage(
        "explanations",
        "the intent of the first test clips, and why, claim by claim checked by the judge",
        f"{EXPLAIN} --checkpoint {RUNS}/itsl/best --batch {RUNS}/answers.jsonl --limit 100",
        f"{RUNS}/answers.jsonl",
    ),
    Stage(
        "before",
        "the same by the model of the second stage",
        f"{EXPLAIN} --checkpoint {RUNS}/supervised/best --batch {RUNS}/before.jsonl --limit 100",
        f"{RUNS}/before.jsonl",
    ),
    Stage(
        "swaps",
        "whether the explanations follow when a clip gets the words, sound or pictures of another",
        f"-m imagebind_llm.explain.faithfulness --checkpoint {RUNS}/itsl/best --data_path {CLIPS} {EMB} --how swap --limit 32"
        f" --output {RUNS}/swaps.json",
        f"{RUNS}/swaps.json",
    ),
    Stage("report", "everything on one page", "data/demo/make_report.py", f"{RUNS}/report.html"),
)


@dataclass(frozen=True)
class DemoSettings:
    """data/demo/run.py has no flags."""


def main() -> int:
    record = Path(RUNS, "stages.json")
    done = json.loads(record.read_text()) if record.is_file() else {}
    ranks, bfloat16 = ranks_here(), cpu_multiplies_bfloat16()
    anew = False  # once a stage has run, those after it look whether it made a difference
    for number, stage in enumerate(STAGES, 1):
        before = done.get(stage.name, {})
        if before.get("command") != stage.command or (before.get("done") and not Path(stage.result).exists()):
            before = {}
        if before.get("done") and not anew:
            print(f"[{number}/{len(STAGES)}] {stage.name}: there already, {stage.result}")
            continue
        command = typed(stage, ranks, bfloat16)
        print(f"\n[{number}/{len(STAGES)}] {stage.name}: {stage.what}\n    python {command}", flush=True)
        anew = True
        spent = before.get("seconds", 0.0)
        note(record, done, stage, spent, finished=False)  # also true if this is killed
        started = time.monotonic()
        try:
            code = subprocess.run([sys.executable, *shlex.split(command)], env=environment(stage, ranks)).returncode
        except KeyboardInterrupt:
            code = None
        note(record, done, stage, spent + time.monotonic() - started, finished=code == 0)
        if code is None:
            print(f"\ndemo: interrupted in stage {stage.name}; make demo continues there", file=sys.stderr)
            return 130
        if code:
            print(f"\ndemo: stage {stage.name} failed for the reason above; mend it, then: make demo", file=sys.stderr)
            return 1
    total = sum(one["seconds"] for one in done.values())
    print(f"\ndemo: {total / 60:.0f} minutes of work in {RUNS}; open {RUNS}/report.html in a browser")
    return 0


def note(record: Path, done: dict[str, dict], stage: Stage, seconds: float, finished: bool) -> None:
    """Remember what a stage took so far, and whether its result is whole."""
    done[stage.name] = {"command": stage.command, "seconds": round(seconds, 1), "done": finished}
    write_json(record, done)


def typed(stage: Stage, ranks: int, bfloat16: bool) -> str:
    """A stage's command on one or two ranks, with as many rows a step. What is remembered is always that of two, in the default
    dtype: the machine may change, the stage is the same."""
    command = stage.command.replace(RANKS, f"--nproc_per_node {ranks}")
    command = re.sub(r"--batch_size (\d+)", lambda rows: f"--batch_size {2 * int(rows[1]) // ranks}", command)
    return f"{command} --dtype bfloat16" if bfloat16 and LLAMA.search(stage.command) else command


def environment(stage: Stage, ranks: int) -> dict[str, str]:
    """Ranks share the cores evenly; a stage that runs in one process finds them all by itself."""
    threads = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 2) // ranks, 1))} if stage.command.startswith(TORCHRUN) else {}
    return os.environ | threads


if __name__ == "__main__":
    parse(DemoSettings, description=f"{__doc__}\n" + "\n".join(f"{stage.name}: {stage.what}" for stage in STAGES))
    sys.exit(main())
