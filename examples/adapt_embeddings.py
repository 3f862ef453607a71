"""Learn an adapter from pairs of prompts, apply it to a prompt in foreign words, and read what the clips show.

Run: .venv/bin/python examples/adapt_embeddings.py
"""

from latentloom.micro import default_checkpoint
from latentloom.micro.delta_demo import train_adapter
from latentloom.micro.read import read_clips
from latentloom.micro.score import to_unit_range
from latentloom.storage import write_contact_sheet
from latentloom.wan.pipeline import WanPipeline

PROMPT = "A giant cobalt tile climbs on a snowy background."


def main() -> None:
    pipeline = WanPipeline.load(default_checkpoint())
    adapter = train_adapter(pipeline).chosen.adapter
    clips = []
    for name, adjust in (("as it is", None), ("with delta", adapter)):
        frames, _ = pipeline.generate([PROMPT], seeds=[0], adjust=adjust)
        print(f"{name:10}", read_clips(to_unit_range(frames))[0].attributes)
        clips.append(frames[0])
    write_contact_sheet("adapted.png", clips, [PROMPT, "with delta"])


if __name__ == "__main__":
    main()
