"""What a command shows of the logs of this package and of the libraries under it."""

import logging

#: Loggers that warn of what does not concern a run, by what they warn of.
_BESIDE_THE_POINT = {
    "diffusers.quantizers.torchao.torchao_quantizer": "checkpoints in torchao's own formats, which no command reads",
    "bitsandbytes.backends.cpu.ops": "a faster 4-bit product for the CPU, and only 8-bit optimizers are used",
    "DeepSpeed": "the accelerator it chose, which the command has chosen",
}


def set_up_logs(verbose: bool) -> None:
    """Send logs to standard error: warnings, and with `verbose` what the package says about its work."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    for name in _BESIDE_THE_POINT:
        logging.getLogger(name).setLevel(logging.ERROR)
