"""One-step refinement of interpolated samples, trained by drifting in feature space."""
