"""Activation editing inside the blocks of a frozen Wan transformer, embedding arithmetic, and measuring both."""
