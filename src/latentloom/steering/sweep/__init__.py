"""Which blocks and which share of the schedule carry what, with intervals."""
