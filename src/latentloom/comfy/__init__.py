"""ComfyUI nodes: each converts what the host hands it, calls a system, and converts back.

`schema` is how a node is declared, once for both hosts; `nodes/` has the declarations, `registry` lists them, `v1` and
`v3` hand them to ComfyUI by its older and its newer convention. Nothing here imports ComfyUI before a node runs.
"""
