"""The three tensors that systems hand to each other, each with the names and shapes that belong to it.

`TextEmbeddings` are what the text encoder says (ragged: true lengths always travel along), `VideoLatents` are what
the VAE holds, `SentenceVector` is one vector per sentence. All are frozen, indexable and concatenable by row.
"""

from latentloom.tensors.sentence_vector import SentenceVector
from latentloom.tensors.text_embeddings import TextEmbeddings
from latentloom.tensors.video_latents import VideoLatents

__all__ = ["SentenceVector", "TextEmbeddings", "VideoLatents"]
