"""What training needs, small enough for a test: a random LLaMA in Meta's layout, instructions, a MIntRec folder, its store."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import engine_finetune
from imagebind_llm.config import MODALITIES, LlamaConfig
from imagebind_llm.critic.judge import FITTED, ClauseVectors, Judge
from imagebind_llm.demo_world.cues import TYPICAL
from imagebind_llm.demo_world.published import CUE_TABLE
from imagebind_llm.encoder.registry import ENCODERS
from imagebind_llm.encoder.store import Identity, Store, StoreWriter
from imagebind_llm.encoder.weights import file_sha256, find_weights
from imagebind_llm.llama.checkpoint_files import expected_shapes
from imagebind_llm.training.log import Log

TOKENIZER = Path(__file__).parent / "golden" / "llama" / "tiny.model"
INTENTS = ("Praise", "Complain", "Greet")
CUES = {"Praise": "a broad smile", "Complain": "a deep frown", "Greet": "a waving hand"}
ROWS = {"train": 12, "dev": 6, "test": 6}


def write_llama(root: Path, n_layers: int, seed: int = 0) -> Path:
    """A folder as Meta published LLaMA-7B: tokenizer.model, 7B/params.json, 7B/consolidated.00.pth; width 16."""
    config = LlamaConfig(16, n_layers, 2, 2, 48, 300)
    draw = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.ones(shape) if "norm" in name else 0.1 * torch.randn(shape, generator=draw)
        for name, shape in expected_shapes(config).items()
    }
    (root / "7B").mkdir(parents=True)
    shutil.copy(TOKENIZER, root / "tokenizer.model")
    params = {"dim": 16, "multiple_of": 16, "n_heads": 2, "n_layers": n_layers, "norm_eps": 1e-6, "vocab_size": -1}
    (root / "7B" / "params.json").write_text(json.dumps(params))
    torch.save(weights, root / "7B" / "consolidated.00.pth")
    return root


def write_alpaca(path: Path, n_rows: int) -> Path:
    """An instruction file of the three fields that Stanford Alpaca's has; every third row has an input."""
    rows = [
        {"instruction": f"Name thing {i}.", "input": f"word {i}" if i % 3 == 0 else "", "output": f"It is {i * i}."}
        for i in range(n_rows)
    ]
    path.write_text(json.dumps(rows))
    return path


def key_of(split: str, number: int) -> str:
    return f"S0{list(ROWS).index(split) + 1}_E01_{number}"


def write_intents(root: Path) -> Path:
    """A MIntRec folder without clips: three intents in turn; a rationale and typical cues of every row, captions of train's
    and dev's."""
    root.mkdir()
    rationales, captions = [], []
    for split, count in ROWS.items():
        lines = ["season\tepisode\tclip\ttext\tlabel"]
        for i in range(count):
            intent, key = INTENTS[i % 3], key_of(split, i)
            said = f"say it {i}" if split == "test" else f"say {split} {i}"  # no text of test's is train's or dev's
            lines.append(key.replace("_", "\t") + f"\t{said}\t{intent}")
            cues = {cue: value for cue, value in TYPICAL[intent].items() if cue != "family"}
            rationales.append({"key": key, "rationale": f"We see {CUES[intent]}.", "cues": cues})
            if split != "test":
                captions.append({"key": key, "caption": f"Face: {CUES[intent]}.", "split": split})
        (root / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    (root / "rationales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rationales))
    (root / "captions.json").write_text(json.dumps(captions))
    CUE_TABLE.write(root)
    return root


def write_world(root: Path) -> Path:
    """A LLaMA, intents, their embeddings, and an epoch of training in root/run."""
    data = {"data_path": write_intents(root / "MIntRec"), "emb_path": write_store(root / "emb")}
    shape = {"llama_model_path": write_llama(root / "LLAMA", 4), "adapter_layer": 2, "adapter_len": 3, "device": "cpu"}
    pace = {"epochs": 1, "warmup_epochs": 0, "lr": 0.02, "batch_size": 4}
    done = call(engine_finetune.main, **data, **shape, **pace, output_dir=root / "run")
    assert done.code == 0, done.err
    return root


def write_judge(folder: Path, emb: Path) -> Path:
    """A judge of the store's embeddings that was fitted on nothing: it knows the clauses of CUES, and says anything of them."""
    store, draw = Store(emb), torch.Generator().manual_seed(2)
    width = store.identity.width
    vectors = ClauseVectors.load(store.identity)
    known = vectors(list(CUES.values()))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    tensors = {"clip_mean": torch.zeros(3, width), "clip_map": random(3, 4, width)}
    tensors |= {"clause_mean": torch.zeros(width), "clause_map": random(4, width), "known": known}
    tensors |= {"slope": torch.tensor(1.0), "offset": torch.tensor(0.0), "familiar": torch.tensor(0.9)}
    tensors["sample"] = random(8, 3, width)
    folder.mkdir()
    Judge(vectors, store, FITTED, tensors, ("audio", "vision")).save(folder)
    return folder


def write_store(root: Path, keys: list[str] | None = None, encoder: str = "imagebind_tiny") -> Path:
    """Random vectors under the identity that avt_get_emb.py gives to those of the encoder that ships."""
    keys = keys or [key_of(split, i) for split, count in ROWS.items() for i in range(count)]
    spec, sha = ENCODERS["imagebind_tiny"], file_sha256(find_weights("imagebind_tiny"))
    identity = Identity(encoder, sha, "float32", MODALITIES, "to_end", False, spec.width, spec.version)
    shape = (len(keys), len(MODALITIES))
    vectors = torch.randn(*shape, spec.width, generator=torch.Generator().manual_seed(1))
    with StoreWriter(root, identity) as store:
        store.append(keys, vectors, torch.ones(shape, dtype=torch.bool), list(range(len(keys))))
    return root


def write_seen_store(root: Path) -> Path:
    """A store in root/emb whose pictures are near to the captions of write_intents; its sounds are noise."""
    store = Store(write_store(root / "noise"))
    vectors = ClauseVectors.load(store.identity)
    rows, present = store.read(store.keys)
    for i, key in enumerate(store.keys):
        rows[i, MODALITIES.index("vision")] = vectors([CUES[INTENTS[int(key.split("_")[2]) % 3]]])[0] + 0.01 * rows[i, 2]
    with StoreWriter(root / "emb", store.identity) as writer:
        writer.append(store.keys, rows, present, list(range(len(store.keys))))
    return root / "emb"


# --- commands, in this process ---


@dataclass(frozen=True)
class Done:
    """What a command ended with."""

    code: int
    out: str
    err: str


def call(main: Callable[[], int], **flags: object) -> Done:
    """A command's main function under the flags as they would be typed: quicker than a process of its own."""
    words = [part for name, value in flags.items() for part in (f"--{name}", *str(value).split())]
    argv, threads, out, err = sys.argv, torch.get_num_threads(), io.StringIO(), io.StringIO()
    sys.argv = ["command", *words]
    torch.set_num_threads(1)  # as in the processes it is compared with
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.argv = argv
        torch.set_num_threads(threads)
    return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def interrupted(step: int):
    """Runs are interrupted after so many steps."""
    line = Log.step

    def interrupting(self, moment):
        line(self, moment)
        if moment.position.total == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "step", interrupting)
        yield


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def read_lines(path: Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
