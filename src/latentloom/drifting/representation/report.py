"""The evaluation of a representation as a page."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from latentloom.drifting.images import pixels_from_bytes
from latentloom.drifting.pictures import image_grid
from latentloom.drifting.representation import plots
from latentloom.drifting.representation.evaluate import NUM_AGREEING, Evaluation
from latentloom.runs import Report

NUM_CLASSES_SHOWN = 12
NUM_EXEMPLARS = 4
NUM_CLIPS_SHOWN = 6
NUM_QUERIES = 6
_CAPTION_CHARACTERS = 60


def write_report(path: Path | str, evaluation: Evaluation, *, temperatures: tuple[float, ...], seed: int = 0) -> None:
    """Write the page as one HTML file.

    Args:
        path: the file.
        evaluation: what it shows.
        temperatures: that the kernel was viewed at.
        seed: of the layouts in the plane.

    Raises:
        FileError: the place cannot be written to.
    """
    subject = evaluation.subject
    report = Report(f"Representation: {subject.name}")
    report.paragraph(
        f"{subject.data}. Classes of all samples are counted; everything else is of a sample of {len(subject.vectors)}."
    )
    report.heading("What to read off")
    report.table(("question", "rule", "found", "answer"), [tuple(reading) for reading in evaluation.readings])
    if evaluation.missing:
        report.heading("What is missing")
        for line in evaluation.missing:
            report.paragraph(line)
    _add_occupancy(report, evaluation)
    _add_figures(report, evaluation)
    _add_kernel(report, evaluation, temperatures)
    _add_planes(report, evaluation, seed)
    _add_exemplars(report, evaluation)
    _add_neighbours(report, evaluation)
    _add_clips(report, evaluation)
    report.write(path)


def _add_occupancy(report: Report, evaluation: Evaluation) -> None:
    occupied = evaluation.occupied
    report.heading("Occupancy")
    report.figure(plots.occupancy_figure(evaluation.subject.counts), "Members per class, all samples.")
    rows = [
        ("classes used", f"{occupied.num_used} of {occupied.num_classes}"),
        ("entropy of class usage, nats", occupied.entropy),
        ("perplexity", occupied.perplexity),
        ("largest class, share of samples", occupied.dominance),
        ("empty classes, share", occupied.empty_share),
        ("classes with one member, share", occupied.singleton_share),
        ("near-empty classes (0 or 1), share", occupied.near_empty_share),
        ("members per class: mean", occupied.mean),
        ("median", occupied.median),
        ("10th percentile", occupied.p10),
        ("90th percentile", occupied.p90),
    ]
    report.table(("figure", "value"), rows)


def _add_figures(report: Report, evaluation: Evaluation) -> None:
    report.heading("Separation and retrieval")
    separation, retrieval, agreement = evaluation.separation, evaluation.retrieval, evaluation.agreement
    names = {
        "separation/ratio": "distance within classes / between (lower is better)",
        "separation/silhouette": "silhouette, -1 to 1 (higher is better)",
        "separation/davies_bouldin": "Davies-Bouldin index (lower is better)",
    }
    rows = [(text, separation.get(name), separation.get(f"shuffled/{name}")) for name, text in names.items()]
    if separation:
        report.paragraph(
            f"Separation is of {separation['separation/num_samples']:.0f} samples of "
            f"{separation['separation/num_classes']:.0f} classes with two or more members; chance is the same with "
            "shuffled labels. Agreement is of the "
            f"{NUM_AGREEING} nearest neighbours; chance is that of random pairs."
        )
    for name, value in retrieval.items():
        if name.startswith("retrieval/top"):
            rows.append((f"of the {name[13:]} nearest: share of the same class", value, retrieval["retrieval/chance"]))
        elif name.startswith("retrieval/any"):
            rows.append((f"among the {name[13:]} nearest: one of the same class, share of samples", value, None))
    if "families/retrieval/top5" in retrieval:
        chance = retrieval["families/retrieval/chance"]
        rows.append(("of the 5 nearest: share of the same prompt family", retrieval["families/retrieval/top5"], chance))
    texts = {
        "agreement/text_cosine": "prompts: cosine",
        "agreement/keyframe_correlation": "keyframes: correlation",
        "agreement/keyframe_error": "keyframes: mean squared error",
        "agreement/keyframe_psnr": "keyframes: PSNR, dB",
    }
    rows += [(text, agreement[name], agreement[f"random/{name}"]) for name, text in texts.items() if name in agreement]
    report.table(("figure", "value", "chance"), rows)


def _add_kernel(report: Report, evaluation: Evaluation, temperatures: tuple[float, ...]) -> None:
    report.heading("Drifting kernel")
    if evaluation.view is None:
        report.paragraph("Not measured: no two classes have three members in the sample.")
        return
    kernel = evaluation.kernel
    report.figure(
        plots.distance_figure(evaluation.view.within, evaluation.view.across, temperatures),
        "Distances of samples from others of their class and of other classes, and how fast the pull of a target "
        "falls off with its distance.",
    )
    report.paragraph(
        "Real samples of each class stand for generated ones; others of their class attract, those of other classes "
        "repel. Where the positive share is one half, attraction and repulsion are in balance."
    )
    rows = []
    for temperature in temperatures:
        logit, number, share = (
            kernel[f"kernel/{temperature:g}/{name}"] for name in ("logit", "neighbours", "positive_share")
        )
        rows.append((f"{temperature:g}", logit, number, share, _ratio(share)))
    columns = ("temperature", "mean logit", f"effective neighbours of {kernel['num_targets']:.0f}")
    report.table((*columns, "positive share", "positive / negative mass"), rows)
    percentiles = ("p10", "p25", "p50", "p75", "p90")
    rows = [
        (name, *(kernel[f"kernel/distance_{key}_{percentile}"] for percentile in percentiles))
        for key, name in (("pos", "same class"), ("neg", "other classes"))
    ]
    report.table(("distance, in mean distances", *percentiles), rows)


def _ratio(share: float) -> float:
    return share / (1 - share) if share < 1 else float("inf")


def _add_planes(report: Report, evaluation: Evaluation, seed: int) -> None:
    subject, families = evaluation.subject, evaluation.families
    report.heading("In the plane")
    rows = torch.linspace(0, len(subject.vectors) - 1, min(plots.MAX_POINTS, len(subject.vectors))).round().long()
    if len(rows) < 4:
        report.paragraph("Fewer than four samples: nothing to lay out.")
        return
    groups = [("by class", subject.labels[rows], subject.class_names)]
    if families is not None:
        groups.append(("by prompt family", families.labels[rows], families.names))
    vectors = subject.vectors[rows]
    report.figure(plots.plane_figure(plots.tsne(vectors, seed), groups), f"t-SNE of {len(rows)} samples.")
    if plots.has_umap():
        report.figure(plots.plane_figure(plots.umap(vectors, seed), groups), f"UMAP of {len(rows)} samples.")
    else:
        report.paragraph("No UMAP: umap-learn is not installed (pip install umap-learn).")


def _add_exemplars(report: Report, evaluation: Evaluation) -> None:
    subject = evaluation.subject
    report.heading("Exemplars")
    counts = torch.bincount(subject.labels, minlength=len(subject.class_names))
    used = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
    # from the largest class to the smallest, evenly by rank
    shown = used[torch.linspace(0, len(used) - 1, min(NUM_CLASSES_SHOWN, len(used))).round().long().unique()]
    report.paragraph(
        f"Up to {NUM_EXEMPLARS} samples of {len(shown)} classes, from the largest to the smallest in the sample, with "
        "all their keyframes."
    )
    for number in shown.tolist():
        rows = torch.nonzero(subject.labels == number).flatten()[:NUM_EXEMPLARS]
        caption = f"class {subject.class_names[number]}: {int(subject.counts[number])} members"
        if subject.prompts is not None:
            caption += "; " + _prompts(subject.prompts, rows)
        _add_row(report, subject.pictures(rows), caption)


def _add_neighbours(report: Report, evaluation: Evaluation) -> None:
    subject = evaluation.subject
    report.heading("Nearest neighbours")
    report.paragraph(f"A sample at the left, and after it its {NUM_AGREEING} nearest neighbours.")
    queries = torch.linspace(0, len(subject.vectors) - 1, min(NUM_QUERIES, len(subject.vectors))).round().long()
    for query in queries.unique().tolist():
        rows = torch.cat([torch.tensor([query]), evaluation.neighbours[query, :NUM_AGREEING]])
        caption = "classes " + ", ".join(subject.class_names[number] for number in subject.labels[rows].tolist())
        if subject.prompts is not None:
            caption += "; " + _prompts(subject.prompts, rows)
        _add_row(report, subject.pictures(rows), caption)


def _add_row(report: Report, pictures: Tensor, caption: str) -> None:
    samples = pixels_from_bytes(pictures.permute(1, 0, 4, 2, 3))  # [K, M, 3, H, W]
    names = [f"keyframe {number + 1}" for number in range(len(samples))] if len(samples) > 1 else [""]
    report.image(image_grid(list(samples), names), caption)


def _add_clips(report: Report, evaluation: Evaluation) -> None:
    subject = evaluation.subject
    report.heading("Decoded clips")
    if subject.clips is None:
        report.paragraph("Not shown: there is nothing to decode; see what is missing.")
        return
    largest = torch.bincount(subject.labels, minlength=len(subject.class_names)).argsort(descending=True, stable=True)
    classes = [number for number in largest[: NUM_CLIPS_SHOWN // 2].tolist() if (subject.labels == number).any()]
    rows = torch.cat([torch.nonzero(subject.labels == number).flatten()[:2] for number in classes])
    report.paragraph("Two clips of each of the largest classes.")
    report.clips([(_clip_caption(evaluation, row), clip, subject.fps) for row, clip in _decoded(evaluation, rows)])


def _decoded(evaluation: Evaluation, rows: Int64[Tensor, "M"]) -> list[tuple[int, Tensor]]:
    assert evaluation.subject.clips is not None
    return list(zip(rows.tolist(), evaluation.subject.clips(rows), strict=True))


def _clip_caption(evaluation: Evaluation, row: int) -> str:
    subject = evaluation.subject
    name = f"class {subject.class_names[int(subject.labels[row])]}"
    return name if subject.prompts is None else f"{name}: {_shortened(subject.prompts[row])}"


def _prompts(prompts: Sequence[str], rows: Int64[Tensor, "M"]) -> str:
    return " | ".join(_shortened(prompts[int(row)]) for row in rows)


def _shortened(text: str) -> str:
    return text if len(text) <= _CAPTION_CHARACTERS else text[: _CAPTION_CHARACTERS - 1] + "\u2026"
