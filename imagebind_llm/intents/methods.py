"""The methods of classifier.py: each is fitted on rows of a Protocol and returns a predictor (table: registry.py).

probe     the MLP on concatenated embeddings, and logistic regression as its plain baseline
zeroshot  the nearest label sentence; nothing is fitted
itsl      checkpoints of engine_finetune.py, which were trained before; they carry what they were trained on
"""

from pathlib import Path

import numpy as np

from imagebind_llm import distributed
from imagebind_llm.config import MODALITIES, NO_MODALITY, ProbeConfig
from imagebind_llm.corpus.seen import notes, read_stages, refuse_seen
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.encoder.registry import load_text_tower
from imagebind_llm.encoder.store import Store
from imagebind_llm.explain.explainer import Explainer, batch_slices
from imagebind_llm.explain.loading import load_explainer
from imagebind_llm.intents.evaluation import Fitted
from imagebind_llm.intents.probe import Scaling, fit_logistic, train_probes
from imagebind_llm.intents.protocol import EmbeddedClips, Protocol, marks
from imagebind_llm.intents.settings import ClassifierSettings
from imagebind_llm.intents.zeroshot import label_sentences, nearest_label
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.assembly import SharedLlama


def fit_probe(protocol: Protocol, modalities: tuple[str, ...], settings: ClassifierSettings, tick) -> Fitted:
    """Fit the MLP, once per seed, and logistic regression, on the concatenated embeddings of these modalities."""
    columns = [MODALITIES.index(name) for name in modalities]
    train, select = protocol.train, protocol.select
    assert train is not None
    scaling = Scaling.of(train.vectors[:, columns], train.present[:, columns])

    def inputs(rows: EmbeddedClips):
        return scaling.apply(rows.vectors[:, columns], rows.present[:, columns])

    selection = (inputs(select), select.classes) if select else None
    config = ProbeConfig(hidden=settings.hidden, epochs=settings.epochs, class_weights=settings.class_weights)
    training, n_classes = (inputs(train), train.classes), len(protocol.classes)
    probes = train_probes(*training, selection, n_classes, config, settings.seeds, tick)
    logistic = fit_logistic(*training, selection, n_classes, settings.class_weights)
    return Fitted(
        lambda rows: probes.probabilities(inputs(rows)),
        settings.seeds,
        baseline=lambda rows: logistic(inputs(rows))[None],
        epochs=tuple(probes.epochs),
    )


def fit_zeroshot(protocol: Protocol, modalities: tuple[str, ...], settings: ClassifierSettings, tick) -> Fitted:
    """Encode the label sentences by the encoder that made the store; nothing is fitted."""
    sentences = label_sentences(protocol.classes, settings.sentences)
    vectors = load_text_tower(protocol.store.identity, settings.encoder_weights)(sentences)
    tick()
    return Fitted(lambda rows: nearest_label(rows.vectors, rows.present, vectors, modalities).numpy()[None], (0,))


# --- a trained checkpoint ---------------------------------------------------------------------------------------------


def fit_itsl(
    protocol: Protocol, modalities: tuple[str, ...], settings: ClassifierSettings, tick, llama: SharedLlama | None = None
) -> Fitted:
    """Load checkpoints of one model, each trained with another seed; nothing is fitted. Their LLaMA is read once and shared."""
    device, llama = distributed.choose_device(settings.device), llama or SharedLlama()
    infos = [checkpoint.read_info(Path(folder)) for folder in settings.checkpoint]
    seeds = tuple(info["settings"]["seed"] for info in infos)
    if again := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise DataError(
            f"--checkpoint {' '.join(settings.checkpoint)}: expected checkpoints of one model that were trained with different "
            f"seeds, got seed {', '.join(map(str, again))} more than once; evaluate each on its own, into another --output_dir"
        )
    for folder in settings.checkpoint:
        _refuse_seen(folder, protocol)
    tick()

    def predict(rows: EmbeddedClips) -> np.ndarray:
        opened = (_open(folder, protocol, modalities, settings, device, llama) for folder in settings.checkpoint)
        return np.stack([probabilities_of(explainer, rows, protocol, settings.batch_size) for explainer in opened])

    return Fitted(predict, seeds)


def probabilities_of(explainer: Explainer, rows: EmbeddedClips, protocol: Protocol, batch_size: int = 32) -> np.ndarray:
    """Probabilities (N,C) of the protocol's classes. If the text is absent, the prompt has no words either."""
    batches = []
    for part in batch_slices(len(rows), batch_size):
        asked = explainer.prompts(rows.examples[part], rows.present[part, 0].tolist())
        reading = explainer.score(asked, rows.vectors[part], rows.present[part])
        batches.append(explainer.calibration.probabilities(reading.head, reading.decoder).numpy())
    p, labels = np.concatenate(batches), explainer.taxonomy.labels  # (N, their classes)
    if protocol.classes == explainer.taxonomy.coarse_classes:
        coarse = np.array([explainer.taxonomy.coarse(name) for name in labels])
        return np.stack([p[:, coarse == name].sum(1) for name in protocol.classes], axis=1)
    return p[:, [labels.index(name) for name in protocol.classes]]


def _open(
    folder: str,
    protocol: Protocol,
    modalities: tuple[str, ...],
    settings: ClassifierSettings,
    device: str = "cpu",
    llama: SharedLlama | None = None,
) -> Explainer:
    """Load a checkpoint. Raises an error if it was trained on other labels, embeddings or modalities."""
    explainer = load_explainer(Path(folder), settings.llama_model_path, device, shared=llama)
    taxonomy = explainer.taxonomy
    if protocol.classes != taxonomy.coarse_classes and set(protocol.classes) != set(taxonomy.labels):
        raise DataError(
            f"{folder}: trained on the {len(taxonomy.labels)} intents of {taxonomy.name}; "
            f"{protocol.dataset.root} has {len(protocol.classes)} classes, {protocol.dataset.layout}"
        )
    trained_with = ("text",) if NO_MODALITY in explainer.modalities else explainer.modalities
    if strange := [name for name in modalities if name not in trained_with]:
        raise DataError(f"{folder}: was not trained with {' '.join(strange)}; give --modalities {' '.join(trained_with)}")
    if explainer.needs_embeddings and isinstance(protocol.store, Store):  # .pt files do not say what made them
        explainer.check_store(protocol.store)
    return explainer


def _refuse_seen(folder: str, protocol: Protocol) -> None:
    """Raise DataError if a reported row is among those that any stage of the checkpoint was trained or chosen on."""
    stages, report = read_stages(Path(folder)), marks(protocol.report)
    refuse_seen(folder, stages, protocol.report.examples, report)
    protocol.notes.extend(notes(folder, stages, report))
