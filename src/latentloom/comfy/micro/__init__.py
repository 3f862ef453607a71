"""MicroWan inside ComfyUI: the hosts' own transformers with its weights, its text encoder and VAE behind theirs."""
