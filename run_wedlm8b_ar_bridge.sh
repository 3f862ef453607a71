#!/usr/bin/env bash
# Fetch WeDLM-8B once, then train the bridge offline. Settings come from environment variables, all optional:
#   NNODES NODE_RANK NPROC_PER_NODE MASTER_ADDR MASTER_PORT     processes; under SLURM taken from there
#   MODEL_ID LOCAL_MODEL_DIR                                    the model, and where its files go
#   DATA_ROOT TRAIN_JSON VAL_JSON                               the data
#   DTYPE TASK TRAIN_BATCH_SIZE NUM_STEPS LR                    the training
#   RUN_NAME SAVE_DIR WANDB_*                                   the run
#   CONFIG_NAME                                                 another recipe than wedlm8b_ar_bridge
#   DOWNLOAD_ONLY=1                                             stop when the model is here
# Under SLURM with several nodes: srun --ntasks-per-node=1 bash run_wedlm8b_ar_bridge.sh
# Arguments are passed on as further settings, e.g. model.max_seq_len=512.
set -euo pipefail

# Paths are relative to the folder that this is run in. The checkout's own environment serves where none is active.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if ! command -v latentloom >/dev/null && [[ -x "$here/.venv/bin/latentloom" ]]; then
  PATH="$here/.venv/bin:$PATH"
fi

config_name="${CONFIG_NAME:-wedlm8b_ar_bridge}"

# A variable that is not set, or empty, leaves the recipe's value.
settings=()
add_setting() { # key, value
  if [[ -n "$2" ]]; then
    settings+=("$1=$2")
  fi
}
add_setting model.pretrained_model_name_or_path "${MODEL_ID:-}"
add_setting model.pretrained_local_dir "${LOCAL_MODEL_DIR:-}"
add_setting data.data_root "${DATA_ROOT:-}"
add_setting data.train_json "${TRAIN_JSON:-}"
add_setting data.val_json "${VAL_JSON:-}"
add_setting training.dtype "${DTYPE:-}"
add_setting training.task "${TASK:-}"
add_setting training.train_batch_size "${TRAIN_BATCH_SIZE:-}"
add_setting training.num_steps "${NUM_STEPS:-}"
add_setting training.lr "${LR:-}"
# A run's folder takes one training: the stages of the document, which name no run, each get a folder of their own.
if [[ -z "${RUN_NAME:-}" && -n "${TASK:-}${NUM_STEPS:-}" ]]; then
  RUN_NAME="wedlm-8b-ar-latent-bridge${TASK:+-$TASK}${NUM_STEPS:+-$NUM_STEPS}"
fi
add_setting logging.run_name "${RUN_NAME:-}"
add_setting logging.save_dir "${SAVE_DIR:-}"
wandb_variables=("${!WANDB_@}")
if [[ ${#wandb_variables[@]} -gt 0 && "${WANDB_MODE:-}" != disabled && "${WANDB_DISABLED:-}" != true ]]; then
  settings+=("logging.wandb=true")
fi
settings+=("$@")

# Of several processes that fetch into one folder, one downloads and the others wait.
latentloom bridge fetch --config-name "$config_name" ${settings[@]+"${settings[@]}"}
if [[ "${DOWNLOAD_ONLY:-0}" == 1 ]]; then
  echo "DOWNLOAD_ONLY=1: the model is here, nothing is trained"
  exit 0
fi

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1

count_gpus() {
  local listed
  if command -v nvidia-smi >/dev/null && listed="$(nvidia-smi --list-gpus 2>/dev/null)" && [[ -n "$listed" ]]; then
    grep -c . <<<"$listed"
  else
    echo 1
  fi
}

first_host() {
  local hosts="${SLURM_JOB_NODELIST:-${SLURM_NODELIST:-}}"
  if [[ -n "$hosts" ]] && command -v scontrol >/dev/null; then
    hosts="$(scontrol show hostnames "$hosts")"
    echo "${hosts%%$'\n'*}"
  else
    echo 127.0.0.1
  fi
}

nnodes="${NNODES:-${SLURM_NNODES:-1}}"
node_rank="${NODE_RANK:-${SLURM_NODEID:-0}}"
nproc_per_node="${NPROC_PER_NODE:-$(count_gpus)}"
master_addr="${MASTER_ADDR:-$(first_host)}"
master_port="${MASTER_PORT:-29500}"

exec torchrun \
  --nnodes "$nnodes" \
  --node_rank "$node_rank" \
  --nproc_per_node "$nproc_per_node" \
  --master_addr "$master_addr" \
  --master_port "$master_port" \
  --no-python latentloom bridge train --config-name "$config_name" ${settings[@]+"${settings[@]}"}
