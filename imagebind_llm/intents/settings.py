"""The flags of classifier.py. Invalid combinations raise ValueError in __post_init__, before any file is read."""

from dataclasses import dataclass

from imagebind_llm.config import MODALITIES, NO_SELECTION
from imagebind_llm.flags import flag
from imagebind_llm.intents.registry import METHODS


@dataclass(frozen=True)
class ClassifierSettings:
    """The flags of classifier.py."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder, or clips with a CSV/TSV of path, text, split and label")
    emb_path: str = flag(help="embedding store made by avt_get_emb.py, or a folder of train_emb/0.pt ... in file order")
    output_dir: str = flag(help="folder for results.json, predictions.tsv and report.html")
    method: str = flag("probe", "probe: MLP and logistic regression; zeroshot: label sentences; itsl: a checkpoint", METHODS)
    modalities: tuple[str, ...] = flag(MODALITIES, "modalities to use", MODALITIES)
    ablate: bool = flag(False, "report all subsets of --modalities: trained on the subset, and with the others masked in test")
    seeds: tuple[int, ...] = flag((0, 1, 2, 3, 4), "seeds of initial weights and row order; MIntRec's protocol has 0 to 9")
    train_splits: tuple[str, ...] = flag(("train",), "splits to train on")
    select_split: str = flag("dev", f"split on which the epoch is chosen, by macro F1; {NO_SELECTION}: keep the last epoch")
    report_split: str = flag("test", "split to report, neither trained on nor selected on")
    split_by: str = flag("official", "official: the data set's; episode: no episode in two splits", ("official", "episode"))
    episode_fold: int = flag(0, "with --split_by episode: which fifth of the episodes is reported, 0 to 4")
    labels: str = flag("fine", "fine: intents; coarse: express or achieve, or a table's column coarse", ("fine", "coarse"))
    hidden: tuple[int, ...] = flag((128,), "widths of the MLP's hidden layers")
    epochs: int = flag(100, "training epochs of the MLP")
    class_weights: bool = flag(False, "weight classes by the inverse of their frequency")
    sentences: str = flag("names", "zeroshot: compare with label names or with their definitions", ("names", "definitions"))
    encoder_weights: str = flag("", "zeroshot: weight file of the encoder; if not given, the one in checkpoints/")
    checkpoint: tuple[str, ...] = flag((), "itsl: checkpoint folders of engine_finetune.py, one for each training seed")
    llama_model_path: str = flag("", "itsl: path of the LLaMA; if not given, the one that the checkpoint names")
    device: str = flag("auto", "itsl: auto: cuda if available, else cpu", ("auto", "cpu", "cuda"))
    batch_size: int = flag(32, "itsl: clips per batch")
    needed_modality: str = flag("", "TSV of season, episode, clip and Modality that people need; reports a slice for each")
    compare: str = flag("", "output folder of another run on the same rows, for paired tests")

    def __post_init__(self) -> None:
        if METHODS[self.method].uses_training:
            self._refuse_leaks()
        for name in ("modalities", "seeds", "train_splits"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"--{name} {' '.join(map(str, getattr(self, name)))}: name each once")
        if bool(self.checkpoint) != (self.method == "itsl"):
            raise ValueError("--method itsl needs --checkpoint FOLDER (of engine_finetune.py); no other method takes one")
        if min(self.epochs, self.batch_size, *self.hidden) < 1:
            numbers = f"--epochs {self.epochs} --batch_size {self.batch_size} --hidden {' '.join(map(str, self.hidden))}"
            raise ValueError(f"{numbers}: at least 1")
        if not 0 <= self.episode_fold < 5:
            raise ValueError(f"--episode_fold {self.episode_fold}: 0 to 4")

    def _refuse_leaks(self) -> None:
        if self.report_split in self.train_splits:
            raise ValueError(
                f"--report_split {self.report_split} is also in --train_splits: a score on rows that were trained on says what "
                f"was remembered, not what can be told of a new clip; take {self.report_split} out of --train_splits"
            )
        if self.report_split == self.select_split:
            raise ValueError(
                f"--report_split {self.report_split} is also --select_split: the best of {self.epochs} looks at a split is not "
                f"a result on it; choose on another split, or give --select_split {NO_SELECTION} (the last epoch)"
            )
        if self.select_split in self.train_splits:
            raise ValueError(
                f"--select_split {self.select_split} is also in --train_splits: every epoch looks good on rows that were "
                f"trained on; choose on another split, or give --select_split {NO_SELECTION} (the last epoch)"
            )
