"""Refine digits of which 4 of 16 patches are given, and score refiner and interpolation: a minute on one core.

Run: .venv/bin/python examples/refine_digits.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from latentloom.drifting import DriftConfig, run_drift


def main() -> None:
    # a short training: little warmup, and an average over its last part alone
    config = DriftConfig(dataset="digits", steps=250, warmup=20, ema_decay=0.97, drift_n_pos=16, feature_mae_steps=200)
    with TemporaryDirectory() as folder:
        outcome = run_drift(config, Path(folder))
    print(f"{'':24}{'FD':>8}{'KID':>8}{'accuracy':>10}")
    for name, (scores,) in outcome.scores.items():
        print(f"{name:24}{scores.fd.value:8.2f}{scores.kid.value:8.2f}{scores.accuracy.value:10.3f}")
    print(outcome.decision)


if __name__ == "__main__":
    main()
