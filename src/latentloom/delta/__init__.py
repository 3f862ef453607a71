"""Embedding Delta: a small residual adapter between text encoder and DiT, learned from (base, rewritten) prompts."""
