"""Inject another prompt into some blocks of the frozen model, and read what the clips show.

Run: .venv/bin/python examples/steer_blocks.py
"""

from latentloom.micro import default_checkpoint
from latentloom.micro.read import read_clips
from latentloom.micro.score import to_unit_range
from latentloom.steering import Operation, Plan, PromptPayload, block_strengths, steer
from latentloom.storage import write_contact_sheet
from latentloom.wan.pipeline import WanPipeline

PROMPT = "A small blue square moves up on a white background."
INJECTED = "A large red circle moves left on a black background."


def main() -> None:
    pipeline = WanPipeline.load(default_checkpoint())
    payload = PromptPayload(pipeline.encode([INJECTED]))
    clips = []
    for blocks in ("none", "0", "2", "0-3", "all"):
        strengths = block_strengths(blocks, len(pipeline.transformer.blocks))
        with steer(pipeline, Plan((Operation("context", "lerp", strengths, payload),))):
            frames, _ = pipeline.generate([PROMPT], seeds=[0])
        print(f"{blocks:5}", read_clips(to_unit_range(frames))[0].attributes)
        clips.append(frames[0])
    write_contact_sheet(
        "steered.png", clips, ["none: " + PROMPT, "block 0", "block 2", "blocks 0-3", "all: " + INJECTED]
    )


if __name__ == "__main__":
    main()
