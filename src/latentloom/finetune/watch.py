"""What a person sees of a run: lines, curves, samples, and the report page; the main process's part of the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from latentloom.finetune.objective import EVALUATION_QUANTILES
from latentloom.finetune.session import Session
from latentloom.runs import Report, RunFolder
from latentloom.storage import read_video
from latentloom.training import Curve, read_curve

LOSS_CURVE, EVALUATION_CURVE = "loss.jsonl", "evaluation.jsonl"


class Watch:
    """Notes what a run does; made in the main process only.

    Args:
        session: the training.
        run: its folder.
        first_step: where it starts or goes on.
        notes: lines for the report: what was cached, what was changed.
    """

    def __init__(self, session: Session, run: RunFolder, first_step: int, notes: Sequence[str]) -> None:
        self.session = session
        self.run = run
        self.notes = list(notes)
        self.losses = Curve(run.path / LOSS_CURVE, first_step)
        # before the first step there is one as well, which a run that starts again takes again
        self.evaluations = Curve(run.path / EVALUATION_CURVE, first_step + 1 if first_step else 0)

    def step(self, step: int, loss: float, factor: float, seconds: float) -> None:
        """Note one finished step, counted from 0, with its loss, its share of the peak rate, and its time."""
        session = self.session
        norm = session.engine.gradient_norm
        self.losses.append(step, loss=loss, gradient_norm=norm, learning_rate=factor)
        board = self.run.tensorboard()
        board.add_scalar("train/loss", loss, step + 1)
        board.add_scalar("train/gradient_norm", norm, step + 1)
        for group in session.optimizer.param_groups:
            board.add_scalar(f"train/learning_rate_{group['name']}", group["lr"], step + 1)
        self.run.count(session.plan.global_batch(session.plan.at(step).size), "clips")
        if (step + 1) % session.config.steps_per_print == 0 or step + 1 == session.num_steps:
            epoch = step // session.plan.steps_per_epoch + 1
            print(
                f"step {step + 1}/{session.num_steps} epoch {epoch} loss {loss:.9g} gradient {norm:.4g} "
                f"rate {factor:.4g} {seconds:.3g} s",
                flush=True,
            )

    def evaluation(self, step: int, losses: Mapping[float, float]) -> None:
        """Note the held-out losses by quantile after so many steps."""
        mean = sum(losses.values()) / len(losses)
        self.evaluations.append(step, mean=mean, **{f"q{quantile}": loss for quantile, loss in losses.items()})
        board = self.run.tensorboard()
        board.add_scalar("evaluation/loss", mean, step)
        for quantile, loss in losses.items():
            board.add_scalar(f"evaluation/loss_at_quantile_{quantile}", loss, step)
        print(f"step {step} evaluation loss {mean:.9g}", flush=True)

    def samples(self, step: int, files: Sequence[Path]) -> None:
        """Put the samples' middle frames beside each other into TensorBoard."""
        frames = [read_video(file)[0] for file in files]
        row = np.concatenate([clip[len(clip) // 2] for clip in frames], axis=1)
        self.run.tensorboard().add_image("samples", row, step, dataformats="HWC")

    def results(self, position_step: int) -> dict[str, Any]:
        """What the record says of the run."""
        losses = [line["loss"] for line in read_curve(self.run.path / LOSS_CURVE)]
        evaluations = read_curve(self.run.path / EVALUATION_CURVE)
        tail = losses[-min(len(losses), 50) :]
        return {
            "steps": position_step,
            "steps_planned": self.session.num_steps,
            "loss_last": losses[-1] if losses else None,
            "loss_mean_of_last_50": sum(tail) / len(tail) if tail else None,
            "evaluation_first": evaluations[0]["mean"] if evaluations else None,
            "evaluation_last": evaluations[-1]["mean"] if evaluations else None,
            "items": len(self.session.store),
            "held_out_items": len(self.session.held_out),
        }

    def write_report(self) -> Path:
        """Write `report.html` into the run's folder."""
        session, path = self.session, self.run.path / "report.html"
        mode = "text encoder" if session.config.model.train_text_encoder else "LoRA"
        report = Report(f"{mode} fine-tuning of {session.facts.title}: {self.run.path.name}")
        for note in self.notes:
            report.paragraph(note)
        losses, evaluations = (read_curve(self.run.path / name) for name in (LOSS_CURVE, EVALUATION_CURVE))
        if losses:
            report.heading("Losses")
            report.figure(
                _loss_figure(losses, evaluations), "Training loss by step, its running mean, and the held-out loss"
            )
        if evaluations:
            report.heading("Held-out loss by noise level")
            columns = ["step", "mean", *(f"quantile {quantile}" for quantile in EVALUATION_QUANTILES)]
            rows = [
                [int(line["step"]), line["mean"], *(line[f"q{quantile}"] for quantile in EVALUATION_QUANTILES)]
                for line in evaluations
            ]
            report.table(columns, rows)
        self._show_samples(report)
        report.heading("Settings")
        report.table(["setting", "value"], list(_flat(session.config.model_dump(mode="json"))))
        report.write(path)
        return path

    def _show_samples(self, report: Report) -> None:
        folders = sorted(self.run.path.glob("epoch*"), key=lambda folder: int(folder.name.removeprefix("epoch")))
        shown = [folder for folder in folders if (folder / "samples.png").is_file()]
        if not shown:
            return
        report.heading("Samples: the same prompts from the same noise")
        for folder in dict.fromkeys((shown[0], shown[-1])):
            epoch = folder.name.removeprefix("epoch")
            report.image(folder / "samples.png", "before training" if epoch == "0" else f"after epoch {epoch}")


def _loss_figure(losses: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]]):
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    steps = np.array([line["step"] + 1 for line in losses])
    values = np.array([line["loss"] for line in losses])
    width = len(values) // 50
    axes.plot(steps, values, color="#b8c4d6" if width > 1 else "#1f4e9c", linewidth=0.8, label="each step")
    if width > 1:
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, color="#1f4e9c", label=f"mean of {width} steps")
    if evaluations:
        places = [line["step"] for line in evaluations]
        axes.plot(places, [line["mean"] for line in evaluations], "o-", color="#c25b12", markersize=4, label="held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure


def _flat(values: Mapping[str, Any], prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
