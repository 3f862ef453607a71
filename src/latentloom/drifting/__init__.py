"""One-step refinement of interpolated samples, trained by drifting in feature space."""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "DriftConfig",
    "MaeConfig",
    "PatchRefiner",
    "compute_drift",
    "drifting_loss",
    "drifting_losses",
    "load_refiner",
    "run_drift",
]

_MODULES = {
    "DriftConfig": "config",
    "MaeConfig": "config",
    "PatchRefiner": "refiner",
    "compute_drift": "field",
    "drifting_loss": "field",
    "drifting_losses": "field",
    "load_refiner": "refiner_files",
    "run_drift": "run",
}

if TYPE_CHECKING:
    from latentloom.drifting.config import DriftConfig, MaeConfig
    from latentloom.drifting.field import compute_drift, drifting_loss, drifting_losses
    from latentloom.drifting.refiner import PatchRefiner
    from latentloom.drifting.refiner_files import load_refiner
    from latentloom.drifting.run import run_drift
else:  # settings are read without torch, which takes seconds to import

    def __getattr__(name: str) -> object:
        """A public name, from its module, which is imported when the name is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
