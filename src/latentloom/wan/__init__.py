"""The frozen model family: what is known of each Wan model, its checkpoints in every layout, its text encoder and
its sampling pipeline.
"""
