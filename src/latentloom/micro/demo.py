"""The main job: prompts in, clips out, and how much of each prompt the clips show."""

from pathlib import Path

from latentloom.micro import default_checkpoint
from latentloom.micro.delta_demo import add_delta_chapter, run_delta_chapter
from latentloom.micro.evaluate import Evaluation, evaluate
from latentloom.micro.report import write_report
from latentloom.micro.score import PROMPT_SETS, prompt_set
from latentloom.micro.steering_demo import add_steering_chapter, run_steering_chapter
from latentloom.runs import Report
from latentloom.wan.pipeline import WanPipeline

_INTRODUCTION = (
    "MicroWan makes one clip for each prompt below; the attributes of every clip are then read from its pixels and "
    "compared with what the prompt asked for. The sets ask for the same things in different words and start from the "
    "same noise, so what differs between them is only how well the model listens.\n\n"
    "Verbose and terse prompts use words that MicroWan was trained on, for combinations of attributes that it never "
    "saw. Unseen synonyms and telegraphic prompts use words that its encoder has read and its DiT has never met: what "
    "they lose is the room that the systems of LatentLoom work in. Unseen pairs ask for colours of shapes that never "
    "occurred together."
)


def run_demo(folder: Path, num_prompts: int, seed: int = 0) -> list[Evaluation]:
    """Run the main job and write `report.html` and `contact_sheet.png` into the folder.

    Args:
        folder: made where it does not exist.
        num_prompts: of each set.
        seed: of prompts and noise.
    """
    pipeline = WanPipeline.load(default_checkpoint())
    results = [evaluate(pipeline, name, prompt_set(name, num_prompts, seed), seed) for name in PROMPT_SETS]
    chapter = run_delta_chapter(pipeline, results, seed)
    steering = run_steering_chapter(pipeline, results[0], seed)
    fps = pipeline.facts.fps

    def add_chapters(report: Report) -> None:
        add_delta_chapter(report, chapter, fps)
        add_steering_chapter(report, steering, fps)

    write_report(
        results,
        fps,
        folder,
        "LatentLoom: does the model listen?",
        _INTRODUCTION,
        more=add_chapters,
        strips=[results[0], *(item for item in chapter.evaluations if item.name != results[0].name)],
    )
    return [*results, *chapter.after.values()]
