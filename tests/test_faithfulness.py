"""Perturbation tells a rationale that reads its inputs from one that does not."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from imagebind_llm import markdown
from imagebind_llm.config import MODALITIES
from imagebind_llm.demo_world.cues import CUES, CUES_OF, FAMILIES
from imagebind_llm.demo_world.phrases import GISTS, PHRASES
from imagebind_llm.demo_world.published import CUE_TABLE
from imagebind_llm.demo_world.write import draw_world
from imagebind_llm.explain.faithfulness import another_clip, change_cells, faithfulness, main, perturbed, share_following
from imagebind_llm.explain.scoring import Rationale
from imagebind_llm.records import Example

N = 60


@dataclass
class Said:
    intent: str
    rationale: str


@pytest.fixture(scope="module")
def world():
    """Clips whose audio and vision embeddings are their cues, one number a cue, and whose text is the family's name."""
    made = [row for row in draw_world(0, {"train": N, "dev": 1, "test": 1}) if row.split == "train"]
    examples = [Example(row.key, "train", None, row.scene.family, row.scene.intent) for row in made]
    embeddings = torch.zeros(N, 3, 4)
    for i, row in enumerate(made):
        for m, names in ((1, CUES_OF["audio"]), (2, CUES_OF["vision"])):
            embeddings[i, m] = torch.tensor([float(CUES[cue].index(row.scene.cues[cue])) for cue in names])
    truth = [Rationale(row.key, row.scene.intent, row.rationale, row.scene.cues, table=CUE_TABLE) for row in made]
    return examples, embeddings, torch.ones(N, 3, dtype=torch.bool), truth


def reads_what_is_there(examples, embeddings, present):
    """Says every cue that it is given, and nothing else."""
    for example, vectors, there in zip(examples, embeddings, present, strict=True):
        said = [f"The words {GISTS[example.text][0]}."] if example.text else []
        for m, modality in ((1, "audio"), (2, "vision")):
            if there[m]:
                said += [PHRASES[cue][CUES[cue][int(vectors[m, j])]][0] for j, cue in enumerate(CUES_OF[modality])]
        yield Said("Joke" if there.all() else "Leave", ", ".join(said))


def knows_by_heart(world):
    examples, embeddings, present, _ = world
    known = {e.key: s for e, s in zip(examples, reads_what_is_there(examples, embeddings, present), strict=True)}
    return lambda examples, embeddings, present: [known[example.key] for example in examples]


def test_a_rationale_that_reads_its_inputs_is_faithful(world):
    examples, embeddings, present, truth = world
    changes = faithfulness(reads_what_is_there, examples, embeddings, present, truth)
    assert [(c.modality, c.how) for c in changes] == [(m, how) for m in MODALITIES for how in ("drop", "swap")]
    for change in changes:
        assert change.others_kept == 1 and change.n_clips == N and change.text_moved > 0
        assert change.n_claims == (N if change.modality == "text" else 4 * N)
        if change.how == "drop":
            assert (
                change.own_changed == 1
                and change.own_follows is None
                and change.intent_changed == (change.modality != "text" or 1)
            )
        else:
            assert change.own_follows == 1 and 0.2 < change.own_changed < 1 and change.intent_changed == 0


def test_a_rationale_that_is_known_by_heart_is_not(world):
    examples, embeddings, present, truth = world
    for change in faithfulness(knows_by_heart(world), examples, embeddings, present, truth):
        assert (change.own_changed, change.others_kept, change.intent_changed) == (0, 1, 0)
        assert change.own_follows in (None, 0) and math.isclose(change.text_moved, 0)


def test_without_known_cues_the_text_still_tells(world):
    examples, embeddings, present, _ = world
    changes = faithfulness(reads_what_is_there, examples, embeddings, present, None, ("vision",))
    assert [c.own_follows for c in changes] == [None, None] and changes[0].text_moved > 0.1
    swaps = faithfulness(reads_what_is_there, examples, embeddings, present, None, ("vision",), hows=("swap",))
    assert swaps == changes[1:]


def test_only_the_named_modality_is_touched(world):
    examples, embeddings, present, _ = world
    others = another_clip(N, 0)
    assert sorted(others) == list(range(N)) and all(i != other for i, other in enumerate(others))
    for m, modality in enumerate(MODALITIES):
        rest = [k for k in range(3) if k != m]
        same, dropped, there = perturbed(examples, embeddings, present, modality, "drop", others)
        assert not there[:, m].any() and torch.equal(dropped[:, rest], embeddings[:, rest]) and there[:, rest].all()
        swapped_examples, swapped, _ = perturbed(examples, embeddings, present, modality, "swap", others)
        assert torch.equal(swapped[:, m], embeddings[others, m]) and torch.equal(swapped[:, rest], embeddings[:, rest])
        words = [e.text for e in swapped_examples]
        assert words == ([examples[i].text for i in others] if modality == "text" else [e.text for e in examples])
        assert all(e.text == "" for e in same) == (modality == "text")
    assert embeddings[:, 1:].any() and present.all(), "the originals stay"


def test_one_clip_cannot_be_swapped_and_the_table_has_a_row_a_change(world):
    with pytest.raises(ValueError, match="at least 2 clips, got 1"):
        another_clip(1, 0)
    examples, embeddings, present, truth = world
    changes = faithfulness(reads_what_is_there, examples, embeddings, present, truth, ("audio",))
    table = markdown.table(*change_cells([vars(change) for change in changes]))
    assert table.count("\n") == 3 and "| audio | drop | 240 | 1.000 | – | 1.000 |" in table
    assert set(np.unique([e.text for e in examples])) <= set(FAMILIES)


def test_the_command_ends_with_a_sentence(tmp_path, capsys):
    given = ["--checkpoint", str(tmp_path / "absent"), "--data_path", str(tmp_path), "--emb_path", str(tmp_path)]
    assert main(given) == 2
    assert "imagebind_llm.explain.faithfulness: " in capsys.readouterr().err


@pytest.mark.parametrize("modality", ["audio", "vision"])
def test_claims_follow_a_swap_of_what_was_swapped_alone(world, modality):
    examples, embeddings, present, truth = world
    others = another_clip(N, 0)

    def share(changed: str) -> float | None:
        told = reads_what_is_there(*perturbed(examples, embeddings, present, changed, "swap", others))
        return share_following([said.rationale for said in told], truth, others, modality)

    assert share(modality) == 1 and share("vision" if modality == "audio" else "audio") == 0
    assert share_following([""] * N, truth, others, modality) is None
