"""The evaluation of a bridge on disk: what it is scored on, and the folder that the scores go into."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentloom.bridge.checkpoint import export_file, load_bridge, read_export_record
from latentloom.bridge.config import BridgeConfig, DataConfig, EvaluationConfig
from latentloom.bridge.embed import embed_texts, texts_of
from latentloom.bridge.evaluate import evaluate_bridge
from latentloom.bridge.evaluation import BridgeScores
from latentloom.bridge.features import features_are_fixed, pooled_features
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.pairs import PairSet, read_pairs
from latentloom.bridge.pretrained_folder import local_copy
from latentloom.bridge.records import EncoderRecord
from latentloom.bridge.report import write_evaluation_report
from latentloom.bridge.run_data import RunPairs, run_encoder_name, run_pairs
from latentloom.bridge.sentence_encoders import SentenceEncoder, is_encoder_here, load_sentence_encoder
from latentloom.errors import ConfigError, FileError
from latentloom.runs import load_config
from latentloom.storage import write_json

FOLDER = "evaluation"
METRICS_NAME = "metrics.json"
CONFIG_NAME = "config.toml"


@dataclass(frozen=True)
class EvaluationRequest:
    """What to score.

    Attributes:
        bridge: an export, or the folder of a run, whose newest export is taken.
        pairs: to score on, as in `data.train_json`.
        texts: to score on, with vectors made by the encoder; with neither, a run's own held-out pairs.
        encoder: its name; None takes the run's, where it made the vectors.
        num_pairs, best_of: in place of the run's settings.
        seed: of the draws and intervals.
        device: the best there is when None.
        out: folder of the scores; None is `evaluation` beside the export.
        local_dir: folder of the backbone's files, when they are not where the export says.
    """

    bridge: Path
    pairs: str | None = None
    texts: Path | None = None
    encoder: str | None = None
    num_pairs: int | None = None
    best_of: int | None = None
    seed: int = 0
    device: str | None = None
    out: Path | None = None
    local_dir: Path | None = None


@dataclass(frozen=True, eq=False)
class SavedEvaluation:
    """Scores, and where they lie.

    Attributes:
        scores: with what is missing in their notes.
        folder: of metrics.json and report.html.
        facts: what was scored on what, by name.
    """

    scores: BridgeScores
    folder: Path
    facts: dict[str, Any]


def evaluate_saved(request: EvaluationRequest) -> SavedEvaluation:
    """Score a bridge on disk and write metrics.json and report.html.

    Raises:
        LatentLoomError: the user's mistakes: no such bridge or data, no data named for an export without its run,
            vectors of another width, an encoder that is not here.
    """
    if request.pairs is not None and request.texts is not None:
        raise ConfigError("pairs and texts to score on are both given; give one of them")
    export = export_file(request.bridge)
    about = read_export_record(export)
    training = about.training
    settings = _run_settings(export.parent, request)
    folder = request.out or export.parent / FOLDER
    config = _evaluation_config(settings, request)
    encoder = _encoder(settings, about.encoder, request)
    own, notes = _own_pairs(settings, request)
    local_dir = request.local_dir or (local_copy(settings.model) if settings is not None else None)
    bridge = load_bridge(export, device=request.device, dtype=training.dtype, local_dir=local_dir)
    held_out, source = _held_out(bridge, own, encoder, config, request, folder, notes)
    train = own.train if own is not None else None
    features = None
    if train is not None and settings is not None and training.task != "l2t" and features_are_fixed(bridge):
        cache = settings.logging.save_dir / "cache"
        features = np.asarray(pooled_features(bridge, bridge.tokenize(train.texts), cache).values)
    scores = evaluate_bridge(bridge, held_out, train, encoder, config, training.task, request.seed, features)
    scores = replace(scores, notes=[*notes, *scores.notes])
    facts = {"bridge": str(export), "data": source, "evaluation": config.model_dump(mode="json")}
    write_json(folder / METRICS_NAME, {**facts, **scores.to_json()})
    write_evaluation_report(folder, scores, {**facts, "seed": request.seed})
    return SavedEvaluation(scores, folder, facts)


def _run_settings(folder: Path, request: EvaluationRequest) -> BridgeConfig | None:
    """Settings of the run that an export lies in, with what it keeps beside it; None where it lies elsewhere."""
    if not (folder / CONFIG_NAME).is_file():
        return None
    changes = [] if request.device is None else [f"training.device={request.device}"]
    settings = load_config(BridgeConfig, folder / CONFIG_NAME, changes)
    # its save_dir is read from where it was trained, which need not be here; its data's paths have nowhere else
    depth = len(Path(settings.logging.run_name).parts)
    logging = settings.logging.model_copy(update={"save_dir": folder.resolve().parents[depth - 1]})
    data = settings.data.model_copy(update={"data_root": settings.data.data_root.absolute()})
    return settings.model_copy(update={"logging": logging, "data": data})


def _evaluation_config(settings: BridgeConfig | None, request: EvaluationRequest) -> EvaluationConfig:
    chosen = {"num_pairs": request.num_pairs, "best_of": request.best_of, "encoder": request.encoder}
    given = {name: value for name, value in chosen.items() if value is not None}
    return (settings.evaluation if settings is not None else EvaluationConfig()).model_copy(update=given)


def _encoder(
    settings: BridgeConfig | None, stated: EncoderRecord | None, request: EvaluationRequest
) -> SentenceEncoder | None:
    """The encoder asked for, or the one that made the vectors where that is known and here; texts need one."""
    name = request.encoder or (run_encoder_name(settings) if settings is not None else None)
    if name is None and stated is not None and stated.source and is_encoder_here(stated.source):
        name = stated.source
    if name is None and request.texts is not None:
        raise ConfigError(
            f"vectors of {request.texts} need the encoder that made the bridge's data, and its run does not say which, "
            "or it is not here; name it with --encoder"
        )
    return None if name is None else load_sentence_encoder(name, request.device)


def _own_pairs(settings: BridgeConfig | None, request: EvaluationRequest) -> tuple[RunPairs | None, list[str]]:
    """A run's pairs; None with a note where other data is scored and the run's own is not here."""
    is_needed = request.pairs is None and request.texts is None
    if settings is None:
        if is_needed:
            raise ConfigError(
                f"{request.bridge} lies in no run with a {CONFIG_NAME}, so that its held-out pairs are not known; give "
                "--data or --texts"
            )
        return None, []
    try:
        return run_pairs(settings), []
    except FileError as error:
        if is_needed:
            raise FileError(
                f"the pairs of the run in {request.bridge} cannot be read: {error}; or run this where it was trained, "
                "or give --data or --texts"
            ) from error
        return None, [f"The training pairs are not here, so that texts among them are scored too: {error}."]


def _held_out(
    bridge: LatentBridge,
    own: RunPairs | None,
    encoder: SentenceEncoder | None,
    config: EvaluationConfig,
    request: EvaluationRequest,
    folder: Path,
    notes: list[str],
) -> tuple[PairSet, str]:
    """The pairs that are scored, without those that were trained on, and where they come from."""
    trained_on = set(own.train.texts) if own is not None else set()
    cache = folder / "cache"
    if request.pairs is not None:
        bad = DataConfig().max_bad_share
        pairs = read_pairs(request.pairs, Path(), latent_dim=bridge.latent_dim, cache=cache, max_bad_share=bad)
        rows = _unseen(pairs.texts, trained_on, request.pairs, notes)
        return (pairs if len(rows) == len(pairs) else pairs.select(rows)), request.pairs
    if request.texts is not None and encoder is not None:
        texts = texts_of(request.texts)
        rows = _unseen(texts, trained_on, str(request.texts), notes)
        if len(rows) > config.num_pairs:  # drawn here, so that no vector is made in vain
            drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(request.seed))
            rows = [rows[place] for place in sorted(drawn[: config.num_pairs].tolist())]
        return embed_texts([texts[row] for row in rows], encoder, cache=cache), str(request.texts)
    if own is None:
        raise ConfigError("there are no pairs to score on; give --data or --texts")
    return own.held_out, own.description


def _unseen(texts: Sequence[str], trained_on: set[str], source: str, notes: list[str]) -> list[int]:
    """Rows of the texts that were not trained on."""
    rows = [row for row, text in enumerate(texts) if text not in trained_on]
    if not rows:
        raise ConfigError(f"all texts of {source} are training texts of the bridge; give others")
    if num := len(texts) - len(rows):
        notes.append(f"{num} texts of {source} are training texts and were left out.")
    return rows
