"""Learning control vectors: a training, and so a run with a record of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentloom.runs import RunFolder
    from latentloom.steering.control.fit import FittedControl
    from latentloom.steering.control.learned import LearningHistory
    from latentloom.tensors import TextEmbeddings
    from latentloom.wan.pipeline import WanPipeline

RUNS = "runs"


def learn_vectors(
    pipeline: "WanPipeline", by_name: dict[str, list[tuple[str, str]]], seed: int, data: str, root: Path, out: Path
) -> "dict[str, FittedControl]":
    """A vector for each name that makes the model answer the negative prompts as the positive ones.

    The run lies in `runs` of the output folder: its record, the curve of each vector, and what they reach.

    Args:
        pipeline: the model.
        by_name: pairs (positive, negative) of prompts.
        seed: of noise and draws.
        data: where the pairs come from, in words.
        root: the checkpoint.
        out: folder of the vectors.
    """
    from latentloom.runs import RunFolder
    from latentloom.steering.control.experiment import control_training

    encoder = fingerprint(pipeline)
    facts = {name: control_training(data, len(pairs), str(root), encoder) for name, pairs in by_name.items()}
    settings = {"method": "learned", "site": "context", "seed": seed, "vectors": list(by_name), "ckpt_root": str(root)}
    words = f"{data}, {', '.join(f'{len(pairs)} pairs for {name}' for name, pairs in by_name.items())}"
    with RunFolder.create(out / RUNS, "control-fit", settings, seeds=seed, data=words, trainings=facts) as run:
        fitted = {}
        results = {}
        for name, pairs in by_name.items():
            fitted[name], history = _learn(pipeline, pairs, seed, data)
            _write_curve(run, name, history)
            run.count(len(history.losses) * facts[name].batch_size, "clips")
            told_apart = float(fitted[name].separation.pairs.min())
            results[name] = {
                "loss_before": history.before,
                "loss_after": history.after,
                "smallest_share_told_apart": told_apart,
            }
        run.finish(results)
    return fitted


def encode_pairs(
    pipeline: "WanPipeline", pairs: list[tuple[str, str]], seed: int, data: str
) -> "tuple[TextEmbeddings, TextEmbeddings, list[int], dict[str, Any]]":
    """Both sides of pairs of prompts, positive first, a seed for each pair, and where the vector comes from."""
    positive, negative = (pipeline.encode([pair[side] for pair in pairs]) for side in (0, 1))
    about = {"data": data, "first_pair": list(pairs[0]), "encoder": fingerprint(pipeline), "seed": seed}
    return positive, negative, list(range(seed, seed + len(pairs))), about


def fingerprint(pipeline: "WanPipeline") -> str | None:
    """Of the text encoder; None where the model has none."""
    return pipeline.text_encoder.fingerprint() if pipeline.text_encoder is not None else None


def _learn(
    pipeline: "WanPipeline", pairs: list[tuple[str, str]], seed: int, data: str
) -> "tuple[FittedControl, LearningHistory]":
    import torch

    from latentloom.steering.control.fit import FittedControl, separation
    from latentloom.steering.control.learned import learn_control
    from latentloom.steering.control.record import record_pairs

    positive, negative, seeds, about = encode_pairs(pipeline, pairs, seed, data)
    generator = torch.Generator().manual_seed(seed)
    control, history = learn_control(pipeline, negative, positive, seeds=seeds, generator=generator, provenance=about)
    sides = record_pairs(pipeline, positive, negative, seeds, "context")
    return FittedControl(control, None, None, separation(*sides, control.directions)), history


def _write_curve(run: "RunFolder", name: str, history: "LearningHistory") -> None:
    writer = run.tensorboard()
    for step, loss in enumerate(history.losses):
        writer.add_scalar(f"{name}/loss", loss, step)
