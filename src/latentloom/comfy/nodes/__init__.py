"""The nodes, by topic: declarations and the few lines that each runs."""
