"""What the figures of a representation say, by rules that are stated beside them."""

from collections.abc import Mapping
from typing import NamedTuple

from latentloom.drifting.representation.occupancy import LEAST_EVENNESS, MOST_NEAR_EMPTY, Occupancy

MOST_DOMINANCE = 10.0  # times the mean share
GOOD_RATIO, POOR_RATIO = 0.8, 0.95
LEAST_GAIN = 0.1  # of a cosine or correlation over that of random pairs
LEAST_NEIGHBOURS = 1.5


class Reading(NamedTuple):
    """A question, its rule, what was found, and what follows."""

    question: str
    rule: str
    found: str
    verdict: str


def read_off(
    figures: Mapping[str, Mapping[str, float]], occupied: Occupancy, *, are_pseudo_classes: bool
) -> list[Reading]:
    """What to conclude from the metrics; a question whose figures are missing is answered with "not measured".

    Args:
        figures: "separation", "retrieval", "agreement" and "kernel", each by name.
        occupied: of the classes.
        are_pseudo_classes: quantised from the vectors themselves, and not labels.
    """
    readings = _of_occupancy(occupied, are_pseudo_classes)
    readings.append(_of_separation(figures.get("separation", {})))
    readings.append(_of_retrieval(figures.get("retrieval", {}), are_pseudo_classes))
    readings += [
        _of_agreement(figures.get("agreement", {}), "prompts", "text_cosine", "cosine"),
        _of_agreement(figures.get("agreement", {}), "keyframes", "keyframe_correlation", "correlation"),
    ]
    return readings + _of_kernel(figures.get("kernel", {}))


def _of_occupancy(occupied: Occupancy, are_pseudo_classes: bool) -> list[Reading]:
    evenness = occupied.perplexity / occupied.num_classes
    too_many = "use fewer classes" if are_pseudo_classes else "classes are very uneven: balance the batches"
    found = f"{occupied.perplexity:.1f} of {occupied.num_classes} ({evenness:.0%})"
    share = occupied.dominance * occupied.num_classes
    return [
        Reading(
            "Are the classes evenly used?",
            f"perplexity at least {LEAST_EVENNESS:.0%} of K",
            found,
            "yes" if evenness >= LEAST_EVENNESS else f"no: {too_many}",
        ),
        Reading(
            "Do classes have members?",
            f"at most {MOST_NEAR_EMPTY:.0%} with 0 or 1",
            f"{occupied.near_empty_share:.1%}",
            "yes" if occupied.near_empty_share <= MOST_NEAR_EMPTY else f"no: {too_many}",
        ),
        Reading(
            "Is no class far too large?",
            f"largest at most {MOST_DOMINANCE:g} times the mean",
            f"{share:.1f} times",
            "yes" if share <= MOST_DOMINANCE else "no: the vectors have collapsed, or one part outweighs the rest",
        ),
    ]


def _of_separation(figures: Mapping[str, float]) -> Reading:
    question = "Are classes apart?"
    rule = f"distance within / between below {GOOD_RATIO:g}; from {POOR_RATIO:g} on no better than shuffled labels"
    if "separation/ratio" not in figures:
        return Reading(question, rule, "not measured", "fewer than two classes have two members in the sample")
    ratio, chance = figures["separation/ratio"], figures["shuffled/separation/ratio"]
    verdict = "yes" if ratio < GOOD_RATIO else "weakly" if ratio < POOR_RATIO else "no"
    return Reading(question, rule, f"{ratio:.3f} (shuffled labels {chance:.3f})", verdict)


def _of_retrieval(figures: Mapping[str, float], are_pseudo_classes: bool) -> Reading:
    question, rule = "Do neighbours share the class?", "of the 5 nearest at least half, and twice what chance gives"
    if "retrieval/top5" not in figures:
        return Reading(question, rule, "not measured", "fewer than six samples")
    top, chance = figures["retrieval/top5"], figures["retrieval/chance"]
    verdict = "yes" if top >= max(0.5, 2 * chance) else "partly" if top >= 2 * chance else "no"
    if are_pseudo_classes and verdict != "yes":
        verdict += "; with few samples per class a neighbour is often across a border"
    return Reading(question, rule, f"{top:.1%} (chance {chance:.1%})", verdict)


def _of_agreement(figures: Mapping[str, float], what: str, name: str, unit: str) -> Reading:
    question, rule = f"Do neighbours agree in {what}?", f"{unit} at least {LEAST_GAIN:g} above random pairs"
    if f"agreement/{name}" not in figures:
        return Reading(question, rule, "not measured", f"the data have no {what}")
    found, chance = figures[f"agreement/{name}"], figures[f"random/agreement/{name}"]
    verdict = "yes" if found >= chance + LEAST_GAIN else f"no: the vector does not see the {what}, or weighs them low"
    return Reading(question, rule, f"{found:.3f} (random pairs {chance:.3f})", verdict)


def _of_kernel(figures: Mapping[str, float]) -> list[Reading]:
    rule = f"more than {LEAST_NEIGHBOURS:g} effective neighbours, and fewer than 80 % of the targets"
    if "num_targets" not in figures:
        return [Reading("Does the kernel see a neighbourhood?", rule, "not measured", "classes have too few members")]
    readings = []
    for key, number in figures.items():
        if not key.endswith("/neighbours"):
            continue
        temperature, most = key.split("/")[1], 0.8 * figures["num_targets"]
        verdict = "yes" if LEAST_NEIGHBOURS < number < most else "too sharp" if number <= LEAST_NEIGHBOURS else "flat"
        share = figures[f"kernel/{temperature}/positive_share"]
        readings.append(
            Reading(
                f"Does the kernel see a neighbourhood at temperature {temperature}?",
                rule,
                f"{number:.1f} of {figures['num_targets']:.0f}; {share:.0%} of the mass is positive",
                verdict,
            )
        )
    return readings
