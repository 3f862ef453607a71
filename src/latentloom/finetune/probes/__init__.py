"""Light probes of what a fine-tune changed: tensors, weights, attention logits, the encoder's geometry.

Each probe is a function that returns plain figures, and a report that shows them; `latentloom inspect` runs them.
"""
