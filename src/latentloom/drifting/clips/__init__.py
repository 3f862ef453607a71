"""Clips: shards of them, keyframe corruption, and the refiner that completes a clip from its keyframes."""
