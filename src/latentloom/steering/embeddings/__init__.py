"""Arithmetic on text embeddings of true lengths, before and after the model's own projection."""
