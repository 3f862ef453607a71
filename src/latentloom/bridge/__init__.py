"""Text <-> sentence vectors on a pretrained language model."""
