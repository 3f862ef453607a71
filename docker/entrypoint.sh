#!/usr/bin/env bash
# The container's command: a recipe on all GPUs, or any latentloom command line.
#
#   8gpu_latent_mae [option ...]       train by recipes/8gpu_latent_mae.toml, in a process per GPU
#   launch NOUN VERB [option ...]      latentloom NOUN VERB in a process per GPU
#   NOUN [option ...]                  latentloom NOUN in one process
#
# NPROC_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT are those of torchrun.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
recipes=$here/../recipes

fail() {
  echo "$1" >&2
  exit 2
}

# torchrun with a process per GPU of each machine; the arguments say what each process runs.
launch() {
  local num_nodes=${NNODES:-1} num_processes=${NPROC_PER_NODE:-}
  if [[ $num_nodes != 1 && -z ${MASTER_ADDR:-} ]]; then
    fail "NNODES=$num_nodes without MASTER_ADDR; give the address of the first machine, and NODE_RANK on each"
  fi
  if [[ $num_nodes != 1 && -z ${NODE_RANK:-} ]]; then
    fail "NNODES=$num_nodes without NODE_RANK; give each machine its number, from 0"
  fi
  if [[ -z $num_processes ]]; then
    num_processes=$(python -c 'import torch; print(max(torch.cuda.device_count(), 1))')
  fi
  exec torchrun --nproc_per_node "$num_processes" --nnodes "$num_nodes" --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" "$@"
}

name=${1:---help}
shift || true # there may be nothing to take away
case $name in
  8gpu_latent_mae) launch --no-python latentloom drift train-mae --config "$recipes/$name.toml" "$@" ;;
  8gpu_drifting_latent) launch --no-python latentloom drift train --config "$recipes/$name.toml" "$@" ;;
  wan22_te_ft | wan22_dit_lora_translator)
    launch --module latentloom.finetune.train --config "$recipes/$name.toml" "$@" ;;
  launch)
    [[ $# -gt 0 ]] || fail "launch without a command; give a noun and a verb, such as: launch drift train"
    launch --no-python latentloom "$@" ;;
  *) exec latentloom "$name" "$@" ;;
esac
