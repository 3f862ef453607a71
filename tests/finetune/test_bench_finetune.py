"""The trainer's benchmark runs, and its plain loops train as the trainer does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_finetune.py"


@pytest.mark.slow
def test_every_way_to_train_and_to_cache_is_measured_and_the_ways_agree() -> None:
    command = [sys.executable, str(BENCHMARK), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    rows = dict(re.findall(r"^(\S.*?)  +\d.* (\d+\.\d{6})$", done.stdout, re.MULTILINE))
    losses = {name: float(loss) for name, loss in rows.items()}
    lora = [losses[name] for name in losses if "encoder" not in name and "float8" not in name and "bfloat" not in name]
    encoder = [losses[name] for name in losses if name.startswith("encoder")]
    assert len(lora) >= 9
    assert len(encoder) == 5
    for values in (lora, encoder):
        assert max(values) - min(values) < 1e-4 * max(values)
    assert re.search(r"^cache +\d", done.stdout, re.MULTILINE)
