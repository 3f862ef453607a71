"""What people decide about runs: keep or drop, and why."""

from datetime import datetime
from typing import Literal

from latentloom.errors import ConfigError
from latentloom.runs.catalog import StoredRun
from latentloom.runs.record import Decision, RunRecord

Choice = Literal["keep", "drop"]


def decide(run: StoredRun, choice: Choice, why: str, *, replace: bool = False) -> RunRecord:
    """Write a decision into the record of a run that has ended; gives the new record.

    What stood there is kept among the earlier decisions. A run's own words about what follows are no decision yet, so
    they give way without `replace`.

    Args:
        run: which one.
        choice: `keep` or `drop`.
        why: the reason, in words.
        replace: whether an earlier decision may be replaced.

    Raises:
        ConfigError: no reason, a run that has not ended, or one that is decided already.
        FileError: the record cannot be written.
    """
    if not why.strip():
        raise ConfigError(f"no reason to {choice} {run.name}; say why")
    record = RunRecord.read(run.path)  # it may have changed since it was listed
    if record.status == "running":
        raise ConfigError(
            f"{run.name} is still running by its record; decide when it has ended, or if it was killed, start it again"
        )
    before = record.decision
    if isinstance(before, Decision) and not replace:
        raise ConfigError(
            f"{run.name} is decided: {before.choice}, because {' '.join(before.why.split())!r}; replace it with "
            "--replace"
        )
    earlier = [*record.earlier_decisions, *([before] if before is not None else [])]
    now = datetime.now().astimezone()
    decision = Decision(choice=choice, why=why.strip(), date=now)
    decided = record.model_copy(update={"decision": decision, "earlier_decisions": earlier})
    decided.write(run.path)
    return decided
