"""Latents and text embeddings of a data set, computed once and kept beside the media.

    <folder of media>/cache/items.arrow                                 what the folder holds
    <folder of media>/cache/latents/<VAE>-<dtype>/shard-*.arrow         latents, by media file and size
    <folder of media>/cache/text/<encoder>-<dtype>/shard-*.arrow        embeddings, by caption
    .../index.arrow                                                     in which shard each is

Everything is keyed by content: a file that is renamed or copied, or another caption, recomputes nothing of the other
kind. Shards are whole or not there, so a run that was interrupted goes on where it was.
"""

from latentloom.finetune.cache.build import cache_dataset
from latentloom.finetune.cache.dataset import CachedDataset
from latentloom.finetune.cache.models import CacheModels
from latentloom.finetune.cache.report import CacheReport

__all__ = ["CacheModels", "CacheReport", "CachedDataset", "cache_dataset"]
