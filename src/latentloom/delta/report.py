"""An evaluation as files: `metrics.json`, the pictures, and a page that shows both."""

from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from latentloom.delta.bootstrap import Estimate
from latentloom.delta.evaluation import CENTRING, Evaluation, Outcome, spread
from latentloom.delta.evaluation_plots import plot_evaluation
from latentloom.errors import ConfigError
from latentloom.runs import Report
from latentloom.storage import atomic_write, write_json

TITLE = "Embedding Delta: held-out pairs"
_PAIRS_SHOWN = 8
_LETTERS_SHOWN = 220
_DOTS_PER_INCH = 140

_CAPTIONS = {
    "cosines": "Share of pairs at or below a cosine to their rewrite (left) and at or below a gain (right). The "
    "further to the right a line, the better.",
    "before_after": "Every test pair, before against after. Above the dotted diagonal it is nearer to its rewrite.",
    "retrieval": "The right rewrite among all test rewrites by cosine; ties count against. Whiskers: 95 % interval.",
    "gain_by_length": "Gain in cosine by length of the base prompt. Whiskers: 95 % interval.",
    "drift": "What happens to prompts that need nothing: 1 - cosine of each rewrite before and after the adjustment.",
    "gates": "The gate by length of the prompt: it should be open for base prompts and closed for rewrites.",
}


def write_evaluation(
    evaluation: Evaluation,
    folder: Path | str,
    title: str = TITLE,
    introduction: str | None = None,
    focus: str | None = None,
    facts: Mapping[str, object] | None = None,
    more: Callable[[Report], None] | None = None,
) -> Path:
    """Write `metrics.json`, `report.html` and `plots/*.png` into the folder; returns the page's path.

    Args:
        evaluation: to be written.
        folder: made where it does not exist.
        title, introduction, focus, more: of the page, see `write_evaluation_report`.
        facts: further keys of `metrics.json`, such as the cache and the adapter that were read.

    Raises:
        ConfigError: `focus` is none of the adjustments.
        FileError: the folder cannot be written to.
    """
    folder, focus = Path(folder), _focus(evaluation, focus)
    write_json(folder / "metrics.json", {**(facts or {}), **evaluation.to_json()})
    figures = plot_evaluation(evaluation)
    for name, figure in figures.items():
        with atomic_write(folder / "plots" / f"{name}.png") as path:
            figure.savefig(path, dpi=_DOTS_PER_INCH, bbox_inches="tight")
    return write_evaluation_report(evaluation, folder, title, introduction, focus, more, figures)


def write_evaluation_report(
    evaluation: Evaluation,
    folder: Path | str,
    title: str = TITLE,
    introduction: str | None = None,
    focus: str | None = None,
    more: Callable[[Report], None] | None = None,
    figures: Mapping[str, Figure] | None = None,
) -> Path:
    """Write `report.html` into the folder and return its path.

    Args:
        evaluation: to be shown.
        folder: made where it does not exist.
        title: of the page.
        introduction: what was trained on what; stands below the title.
        focus: the adjustment that is compared with each of the others; the last one where not given.
        more: adds sections of the caller's at the end.
        figures: from `plot_evaluation`, where they have been drawn already.

    Raises:
        ConfigError: `focus` is none of the adjustments.
    """
    focus = _focus(evaluation, focus)
    figures = figures if figures is not None else plot_evaluation(evaluation)
    report = Report(title)
    if introduction:
        report.paragraph(introduction)
    report.paragraph(verdict(evaluation, focus))
    _add_nearness(report, evaluation, figures)
    _add_retrieval(report, evaluation, figures)
    _add_comparison(report, evaluation, focus)
    _add_lengths(report, evaluation, figures)
    _add_side_effects(report, evaluation, figures)
    _add_gates(report, evaluation, figures)
    _add_pairs(report, evaluation, focus)
    if more:
        more(report)
    page = Path(folder) / "report.html"
    report.write(page)
    return page


def verdict(evaluation: Evaluation, focus: str) -> str:
    """In a few sentences: what came nearest, what found the right rewrite most often, and what is sure of `focus`."""
    names = list(evaluation.outcomes)
    means = {
        key: {name: evaluation.outcomes[name].estimates[key].mean for name in names}
        for key in ("cosine", "recall_at_1")
    }
    nearest, finder = (max(names, key=lambda name: means[key][name]) for key in means)
    text = (
        f"{len(evaluation)} held-out pairs. Nearest to the rewrites: {nearest}, mean cosine "
        f"{means['cosine'][nearest]:.3f} ({evaluation.reference}: {means['cosine'][evaluation.reference]:.3f}). "
        f"Best at finding the right one: {finder}, R@1 {100 * means['recall_at_1'][finder]:.1f} % "
        f"({evaluation.reference}: {100 * means['recall_at_1'][evaluation.reference]:.1f} %)."
    )
    others = [name for name in names if name != focus]
    if not others:
        return text
    rival = max(others, key=lambda name: means["cosine"][name])
    difference = evaluation.differences[focus][rival]["cosine"]
    sure = "above" if difference.low > 0 else "below" if difference.high < 0 else "not surely different from"
    return f"{text} On cosine {focus} is {sure} the best of the others, {rival}: {_signed(difference)}."


def _focus(evaluation: Evaluation, focus: str | None) -> str:
    if focus is None:
        return list(evaluation.outcomes)[-1]
    if focus not in evaluation.outcomes:
        raise ConfigError(f"{focus!r} was not evaluated; name one of {', '.join(evaluation.outcomes)}")
    return focus


def _add_nearness(report: Report, evaluation: Evaluation, figures: Mapping[str, Figure]) -> None:
    report.heading("Nearer to the rewrite")
    rows = []
    for name, outcome in evaluation.outcomes.items():
        marks, means = spread(outcome.cosine), outcome.estimates
        gains = (
            (None, None) if name == evaluation.reference else (_signed(means["gain"]), _percent(means["share_gaining"]))
        )
        cosine = (_with_interval(means["cosine"]), *(f"{marks[key]:.3f}" for key in ("median", "p10", "p90")))
        rows.append([name, *cosine, *gains])
    report.table(["adjustment", "cosine", "median", "p10", "p90", "gain", "pairs that gain"], rows)
    report.paragraph("In brackets the 95 % interval of the mean: percentile bootstrap over the test pairs.")
    _add_figures(report, figures, "cosines", "before_after")
    rows = []
    for name, outcome in evaluation.outcomes.items():
        marks, means = spread(outcome.centred), outcome.estimates
        gain = None if name == evaluation.reference else _signed(means["centred_gain"])
        centred = (_with_interval(means["centred"]), *(f"{marks[key]:.3f}" for key in ("median", "p10", "p90")))
        rows.append([name, *centred, gain])
    report.table(["adjustment", "centred cosine", "median", "p10", "p90", "gain"], rows)
    report.paragraph(
        f"{CENTRING} Shifted cosine, what a constant shift can reach: {_with_interval(evaluation.shifted)}."
    )


def _add_retrieval(report: Report, evaluation: Evaluation, figures: Mapping[str, Figure]) -> None:
    report.heading("Finding the right rewrite")
    rows = [
        [name, _percent(outcome.estimates["recall_at_1"]), _with_interval(outcome.estimates["mrr"])]
        for name, outcome in evaluation.outcomes.items()
    ]
    report.table(["adjustment", "R@1", "mean reciprocal rank"], rows)
    _add_figures(report, figures, "retrieval")


def _add_comparison(report: Report, evaluation: Evaluation, focus: str) -> None:
    others = evaluation.differences[focus]
    if not others:
        return
    report.heading(f"Compared: {focus}")
    rows = [[other, _signed(d["cosine"]), _signed(d["recall_at_1"], 100, 1)] for other, d in others.items()]
    report.table([f"{focus} less", "cosine", "R@1, points"], rows)
    report.paragraph(
        "Differences on the same pairs, with intervals from resampled pairs; one that spans 0 is not sure."
    )


def _add_lengths(report: Report, evaluation: Evaluation, figures: Mapping[str, Figure]) -> None:
    report.heading("By length of the base prompt")
    _add_figures(report, figures, "gain_by_length")
    rows = [
        [bucket.tokens, bucket.num_pairs, name, f"{bucket.cosine.mean:.3f}", gain, _percent(bucket.recall_at_1)]
        for index in range(len(evaluation.outcomes[evaluation.reference].buckets))
        for name, outcome in evaluation.outcomes.items()
        for bucket in [outcome.buckets[index]]
        for gain in [None if name == evaluation.reference else _signed(bucket.gain)]
    ]
    report.table(["tokens", "pairs", "adjustment", "cosine", "gain", "R@1"], rows)


def _add_side_effects(report: Report, evaluation: Evaluation, figures: Mapping[str, Figure]) -> None:
    report.heading("Side effects")
    _add_figures(report, figures, "drift")
    rows = [
        [
            name,
            _with_interval(outcome.estimates["drift"], ".3g"),
            f"{float(outcome.drift.max()):.3g}",
            _ratio(outcome),
            _tokens_ratio(outcome),
            _optional(outcome.cka),
            _optional(outcome.neighbour_overlap),
        ]
        for name, outcome in evaluation.outcomes.items()
    ]
    columns = ["adjustment", "identity drift", "largest", "norm, pooled", "norm, tokens", "CKA", "same neighbours"]
    report.table(columns, rows)
    report.paragraph(
        "Identity drift: 1 - cosine of rewrites before and after. Norms: length after over length before, of base "
        "prompts. CKA and same neighbours: how alike the base prompts lie among each other before and after, at most 1."
    )
    rows = [
        [
            name,
            *(f"{value:.2g}" for value in (r.mean_distance, r.max_distance, r.max_token_error)),
            _share(r.share_of_change),
        ]
        for name, outcome in evaluation.outcomes.items()
        for r in [outcome.rounding]
    ]
    columns = ["output in bfloat16", "mean 1 - cosine", "largest", "largest token error", "rounding / adjustment"]
    report.table(columns, rows)


def _add_gates(report: Report, evaluation: Evaluation, figures: Mapping[str, Figure]) -> None:
    if not evaluation.gates:
        return
    report.heading("The gate")
    rows = [
        [name, _with_interval(gate.base), _with_interval(gate.rewritten), _signed(gate.difference)]
        for name, gate in evaluation.gates.items()
    ]
    report.table(["adjustment", "base prompts", "rewrites", "difference"], rows)
    _add_figures(report, figures, "gates")


def _add_pairs(report: Report, evaluation: Evaluation, focus: str) -> None:
    if evaluation.pairs is None or focus == evaluation.reference:
        return
    report.heading(f"Pairs that gain most and least: {focus}")
    gain = evaluation.gain(focus)
    order = gain.argsort(descending=True, stable=True).tolist()
    count = min(_PAIRS_SHOWN, (len(order) + 1) // 2)
    before = evaluation.outcomes[evaluation.reference].cosine
    for rows, most in ((order[:count], "Most"), (order[: -count - 1 : -1], "Least")):
        report.paragraph(f"{most} gain first; a loss is a gain below 0.")
        report.table(
            ["gain", "before", "after", "base prompt", "rewrite"],
            [
                [
                    f"{float(gain[row]):+.3f}",
                    f"{float(before[row]):.3f}",
                    f"{float(before[row] + gain[row]):.3f}",
                    _shortened(evaluation.pairs[row].base),
                    _shortened(evaluation.pairs[row].rewritten),
                ]
                for row in rows
            ],
        )


def _add_figures(report: Report, figures: Mapping[str, Figure], *names: str) -> None:
    for name in names:
        if name in figures:
            report.figure(figures[name], _CAPTIONS[name])


def _with_interval(value: Estimate, form: str = ".3f") -> str:
    return f"{value.mean:{form}} ({value.low:{form}} to {value.high:{form}})"


def _signed(value: Estimate, factor: float = 1, digits: int = 3) -> str:
    mean, low, high = (f"{factor * each + 0.0:+.{digits}f}" for each in (value.mean, value.low, value.high))
    return f"{mean} ({low} to {high})"


def _percent(value: Estimate) -> str:
    return f"{100 * value.mean:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})"


def _ratio(outcome: Outcome) -> str | None:
    ratio = outcome.estimates.get("pooled_norm_ratio")
    return _with_interval(ratio) if ratio else None


def _tokens_ratio(outcome: Outcome) -> str | None:
    ratios = outcome.token_norm_ratios
    return f"{float(ratios.mean()):.3f}" if len(ratios) else None


def _optional(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.2g} %"


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= _LETTERS_SHOWN else f"{prompt[: _LETTERS_SHOWN - 1].rstrip()}…"
