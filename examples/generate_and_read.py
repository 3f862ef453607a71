"""Make clips from a prompt, change the text embeddings on the way, and read what the clips show.

Run: .venv/bin/python examples/generate_and_read.py
"""

from latentloom.micro import default_checkpoint
from latentloom.micro.read import read_clips
from latentloom.micro.score import to_unit_range
from latentloom.storage import write_contact_sheet
from latentloom.tensors import TextEmbeddings
from latentloom.wan.pipeline import WanPipeline

PROMPT = "A large blue square moves up on a white background."
OTHER = "A large green square moves down on a white background."


def main() -> None:
    pipeline = WanPipeline.load(default_checkpoint())
    target = pipeline.encode([OTHER])

    def halfway(embeddings: TextEmbeddings) -> TextEmbeddings:
        """The mean of both prompts, token by token: they have the same words but for two."""
        return TextEmbeddings((embeddings.tokens + target.tokens) / 2, embeddings.lengths)

    clips = []
    for name, adjust in (("plain", None), ("halfway", halfway), ("other", lambda _: target)):
        frames, _ = pipeline.generate([PROMPT], seeds=[0], adjust=adjust)
        print(f"{name:8}", read_clips(to_unit_range(frames))[0].attributes)
        clips.append(frames[0])
    write_contact_sheet("halfway.png", clips, [PROMPT, "halfway", OTHER])


if __name__ == "__main__":
    main()
