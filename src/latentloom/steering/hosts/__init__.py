"""Thin adapters that bind one plan to the places where Wan transformers run."""
