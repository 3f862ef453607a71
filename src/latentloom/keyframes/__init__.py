"""Pure functions on keyframes and keypatches: which are given, and what is interpolated between them."""
