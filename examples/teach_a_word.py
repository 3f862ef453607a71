"""Teach the DiT a new word with a small LoRA, and read what the clips show before and after: two minutes on one core.

Run: .venv/bin/python examples/teach_a_word.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from latentloom.finetune import FinetuneConfig, Options, applied_adapter, run_finetune
from latentloom.micro import default_checkpoint
from latentloom.micro.draw import write_clips
from latentloom.micro.read import read_clips
from latentloom.micro.score import to_unit_range
from latentloom.runs import load_config
from latentloom.wan.pipeline import WanPipeline

PROMPT = "A large scarlet square moves up on a black background."
RECIPE = Path(__file__).parents[1] / "recipes" / "wan22_dit_lora_translator.toml"


def main() -> None:
    pipeline = WanPipeline.load(default_checkpoint())
    with TemporaryDirectory() as folder:
        write_clips(Path(folder) / "clips", 400, words=["scarlet"])
        settings = [f"dataset={folder}/clips", f"output_dir={folder}/runs", "optimizer.lr=1e-3", "warmup_steps=20"]
        settings += ["adapter.train_blocks_range=[0, 29]", "blocks_to_swap=0", "steps_per_print=50"]
        (run,) = run_finetune(load_config(FinetuneConfig, RECIPE, settings), Options())
        before, _ = pipeline.generate([PROMPT], seeds=[0])
        with applied_adapter(pipeline.transformer, run / "epoch6"):
            after, _ = pipeline.generate([PROMPT], seeds=[0])
    for name, frames in (("before", before), ("after", after)):
        print(f"{name:7}", read_clips(to_unit_range(frames))[0].attributes)


if __name__ == "__main__":
    main()
