"""The Wan 2.2 trainer: UMT5 fine-tuning and DiT LoRA, cached, pipeline-parallel, resumable, diagnosed."""
