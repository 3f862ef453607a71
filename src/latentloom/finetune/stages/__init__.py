"""The text encoder and the transformer as one row of layers, cut into pipeline stages and run by DeepSpeed."""
