"""Say the vectors between two sentences with a trained bridge, and measure how near each text comes to its vector.

Make the bridge:  make demo-lm && .venv/bin/latentloom bridge train data.texts=texts.txt
Run:              .venv/bin/python examples/say_a_vector.py runs/bridge/smollm2-minilm "a small animal" "a sharp tool"
"""

import sys

import torch

from latentloom.bridge.checkpoint import load_bridge
from latentloom.bridge.decoding import DecodingConfig
from latentloom.bridge.interpolate import interpolate_vectors
from latentloom.bridge.rerank import decode_best_of
from latentloom.bridge.sentence_encoders import load_sentence_encoder

BEST_OF_4 = DecodingConfig(mode="sample", num_samples=4, max_new_tokens=24)


def main(export: str, first: str, second: str) -> None:
    encoder = load_sentence_encoder("minilm")
    ends = encoder.encode([first, second])
    between = interpolate_vectors(ends[0:1], ends[1:2], num_steps=5)
    best = decode_best_of(load_bridge(export), between, encoder, BEST_OF_4, torch.Generator().manual_seed(0))
    for text, cosine in zip(best.texts, best.cosines.tolist(), strict=True):
        print(f"{cosine:.2f}  {text}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit('usage: say_a_vector.py EXPORT "first sentence" "second sentence"')
    main(*sys.argv[1:])
