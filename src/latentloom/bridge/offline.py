"""Keeping libraries off the network."""

import os

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def offline_environment() -> None:
    """Set the variables that keep Hugging Face's libraries off the network, for this process and those it starts.

    The libraries read them when they are imported, so a command calls this first. Only `latentloom bridge fetch` does
    not.
    """
    for name in OFFLINE_VARIABLES:
        os.environ[name] = "1"
