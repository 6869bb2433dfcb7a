"""Writes the demo world to disk: h264 + aac clips in MIntRec's layout, its three TSVs, and the reference rationales.

Every draw of a row comes from (seed, split, index), so a clip does not depend on how many others are made, nor by how many
processes. A clip appears under its name only when it is complete; a second run makes what is missing.
"""

import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from imagebind_llm.config import BLIND, FAITHFUL
from imagebind_llm.datasets.readers import SPLITS, rationale_rows
from imagebind_llm.demo_world import cues, face, texts, voice
from imagebind_llm.demo_world.phrases import caption, reference_text, remark
from imagebind_llm.demo_world.published import publish_tables, tables_digest
from imagebind_llm.files import write_atomic, write_json, write_json_lines
from imagebind_llm.flags import flag

DRAWINGS = 1  # raise it whenever a clip of the same row comes to look or sound different: face.py, voice.py, write_clip
REFERENCES = "rationales.jsonl"
CLIPS_PER_EPISODE = 40
SIZES = (
    *((320, 240), (240, 180), (480, 270), (320, 180), (256, 256), (300, 222), (358, 202)),
    *((240, 320), (180, 240), (240, 240)),
)
FRAME_RATES = (Fraction(25, 2), Fraction(15), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30))
SAMPLE_RATES = (16000, 22050, 44100, 48000)
X264 = {"preset": "veryfast", "crf": "22", "threads": "1"}  # one thread: the same seed gives the same bytes
SHORTEST_S, LONGEST_S, MEDIAN_S = 0.8, 6.0, 2.1


@dataclass(frozen=True)
class DemoWorldSettings:
    """What `python -m imagebind_llm.demo_world` takes."""

    output_dir: str = flag("data/demo/clips", "folder to write; an interrupted run continues, missing files are added")
    seed: int = flag(0, "seed of clips and rationales")
    train: int = flag(600, "number of train clips")
    dev: int = flag(200, "number of dev clips")
    test: int = flag(400, "number of test clips")
    workers: int = flag(0, "number of processes; 0: one per core")
    references: str = flag(
        FAITHFUL, "rationales of train and dev to write beside the faithful ones: blind (to the clip), or a share of them, N%%"
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"{FAITHFUL}|{BLIND}|[1-9]\d?%", self.references):
            raise ValueError(f"--references {self.references}: expected {FAITHFUL}, {BLIND} or a share from 1% to 99%")


class DemoWorldError(ValueError):
    """The demo world cannot be written as asked; the message says what to type."""


@dataclass(frozen=True)
class WorldClip:
    """One clip of the world. Its place is raw_data/<season>/<episode>/<clip>.mp4."""

    split: str
    index: int
    season: str
    episode: str
    clip: str
    scene: cues.Scene
    text: str
    rationale: str

    @property
    def key(self) -> str:
        return f"{self.season}_{self.episode}_{self.clip}"

    @property
    def path(self) -> Path:
        return Path("raw_data", self.season, self.episode, f"{self.clip}.mp4")


def generator(seed: int, split: str, index: int, part: str) -> np.random.Generator:
    """The random numbers of one part (scene, words, picture, sound, file, captions, references) of one row."""
    parts = ("scene", "words", "picture", "sound", "file", "captions", "references")
    return np.random.default_rng([seed, SPLITS.index(split), index, parts.index(part)])


def draw_world(seed: int, counts: dict[str, int]) -> list[WorldClip]:
    """All rows of the world, train first. Dev's and test's phrasings are made of words that occur in train's."""
    clips: list[WorldClip] = []
    vocabulary = None
    for split in SPLITS:
        clips += [_row(seed, split, index, vocabulary) for index in range(counts[split])]
        vocabulary = frozenset(word for row in clips if row.split == "train" for word in row.text.split())
    return clips


def _row(seed: int, split: str, index: int, vocabulary: frozenset[str] | None) -> WorldClip:
    scene, rng = cues.draw_scene(generator(seed, split, index, "scene")), generator(seed, split, index, "words")
    season, episode = f"S{SPLITS.index(split) + 1:02d}", f"E{index // CLIPS_PER_EPISODE + 1:02d}"
    text = texts.draw_text(scene.family, split, rng, vocabulary)
    return WorldClip(split, index, season, episode, str(index % CLIPS_PER_EPISODE + 1), scene, text, reference_text(scene, rng))


def write_world(settings: DemoWorldSettings) -> list[WorldClip]:
    """Make the clips that are missing under `output_dir`, then the TSVs, rationales.jsonl, captions.json, ceilings.json and
    cue_phrases.json. Returns the rows.

    rationales.jsonl is faithful to the clips; references.py writes those of other kinds beside it. captions.json names every
    cue of the train and dev clips, for a first training stage; never those of the test split.

    Raises DemoWorldError if the folder holds another world.
    """
    root = Path(settings.output_dir)
    counts = {split: getattr(settings, split) for split in SPLITS}
    if min(counts.values()) < 1:
        raise DemoWorldError(f"every split needs a clip, got {counts}; for example: --train 600 --dev 200 --test 400")
    clips = draw_world(settings.seed, counts)
    _claim(root, settings.seed, clips)
    missing = [row for row in clips if not (root / row.path).exists()]
    if len(missing) < len(clips):
        print(f"{len(clips) - len(missing)} of {len(clips)} clips are there already")
    _make_clips(root, missing, settings)
    for split in SPLITS:
        write_atomic(root / f"{split}.tsv", _tsv([row for row in clips if row.split == split]).encode())
    write_json_lines(root / REFERENCES, map(reference, clips))
    captions = [caption for row in clips if row.split != "test" for caption in _captions(row, settings.seed)]
    write_json(root / "captions.json", captions, indent=0)
    publish_tables(root)
    return clips


def _claim(root: Path, seed: int, made: list[WorldClip]) -> None:
    """Write world.json, or check that it is of the same world; one of an older form is brought to this one."""
    world = {"version": cues.VERSION, "seed": seed, "tables": tables_digest(), "drawings": DRAWINGS}
    path = root / cues.WORLD
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        if strange := sorted(child.name for child in root.iterdir() if not child.name.startswith(".")):
            raise DemoWorldError(f"{root} holds other files ({', '.join(strange[:3])}); choose a new or empty --output_dir")
        write_json(path, world | {"references": {FAITHFUL: REFERENCES}}, indent=None)
    old = json.loads(path.read_text())
    references = old.pop("references", {FAITHFUL: REFERENCES})
    if "code" in old and _same_scenes(root, made):  # the form of before: a digest of source files in place of the tables'
        old = {name: old[name] for name in ("version", "seed")} | {name: world[name] for name in ("tables", "drawings")}
    if old != world:
        raise DemoWorldError(
            f"{root} holds a world made with {old}, this run would make {world}; choose another --output_dir, "
            f"or remove the old world first: rm -r {root}"
        )
    write_json(path, world | {"references": references}, indent=None)


def _same_scenes(root: Path, made: list[WorldClip]) -> bool:
    """Whether the intents and cues that rationales.jsonl has are those of the rows: then the tables were the same."""
    path = root / REFERENCES
    lines = rationale_rows(path) if path.is_file() else {}
    pairs = [(lines[row.key], row.scene) for row in made if row.key in lines]
    return all((line["intent"], line["cues"]) == (scene.intent, scene.cues) for line, scene in pairs)


def _make_clips(root: Path, missing: list[WorldClip], settings: DemoWorldSettings) -> None:
    workers = min(settings.workers or os.cpu_count() or 1, max(1, len(missing)))
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(write_clip, root / row.path, row, settings.seed) for row in missing]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="clips", unit="clip", disable=not jobs):
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)  # on an error or Ctrl-C, do not make the rest first


def write_clip(path: Path, row: WorldClip, seed: int) -> None:
    """Draw, voice and encode one clip; it is under `path` when it is complete, not before."""
    rng = generator(seed, row.split, row.index, "file")
    duration_s = float(np.clip(MEDIAN_S * np.exp(0.5 * rng.standard_normal()), SHORTEST_S, LONGEST_S))
    size, rate = SIZES[rng.integers(len(SIZES))], FRAME_RATES[rng.integers(len(FRAME_RATES))]
    sample_rate, layout = SAMPLE_RATES[rng.integers(len(SAMPLE_RATES))], ("mono", "stereo")[rng.integers(2)]
    look = face.draw_look(generator(seed, row.split, row.index, "picture"))
    sound = voice.speak(row.scene.cues, duration_s, generator(seed, row.split, row.index, "sound"))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.tmp")
    drawn = [face.frame(row.scene.cues, look, size, phase) for phase in range(face.PHASES)]
    n_frames, frames_per_phase = round(duration_s * rate), float(rate) * look.rhythm / face.PHASES
    shown = (drawn[int(i / frames_per_phase) % face.PHASES] for i in range(n_frames))
    try:
        with av.open(str(part), "w", format="mp4") as container:
            video = container.add_stream("libx264", rate=rate, options=X264)
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            audio = container.add_stream("aac", rate=sample_rate, layout=layout)
            _encode(video, (av.VideoFrame.from_image(picture) for picture in shown))
            _encode(audio, _sound_frames(sound, audio))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _encode(stream, frames: Iterable) -> None:
    for frame in (*frames, None):
        stream.container.mux(stream.encode(frame))


def _sound_frames(sound: np.ndarray, stream) -> list[av.AudioFrame]:
    """The voice resampled for an aac stream, in its frames; in stereo, the right channel is a little quieter."""
    layout = stream.layout.name
    channels = sound[None] if layout == "mono" else np.stack([sound, 0.8 * sound])  # (channels, samples)
    whole = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
    whole.sample_rate, whole.pts = voice.SAMPLE_RATE, 0
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=stream.rate, frame_size=1024)
    return [*resampler.resample(whole), *resampler.resample(None)]


def _tsv(some: list[WorldClip]) -> str:
    lines = ["season\tepisode\tclip\ttext\tlabel"]
    lines += ["\t".join((row.season, row.episode, row.clip, row.text, row.scene.intent)) for row in some]
    return "\n".join(lines) + "\n"


def reference(row: WorldClip) -> dict:
    """A line of rationales.jsonl."""
    return {"key": row.key, "intent": row.scene.intent, "rationale": row.rationale, "cues": row.scene.cues}


def _captions(row: WorldClip, seed: int) -> list[dict]:
    """All cues in one line, and some of them in a sentence, in words drawn anew."""
    rng = generator(seed, row.split, row.index, "captions")
    texts = (caption(row.scene.cues, rng), remark(row.scene.cues, rng))
    return [{"key": row.key, "split": row.split, "caption": text} for text in texts]
