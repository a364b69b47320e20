#!/bin/bash
#SBATCH --job-name=hpcserve-model  # from the model's name
#SBATCH --nodes=2  # command line
#SBATCH --gpus-per-node=8  # inferred from tp, pp and dp
#SBATCH --signal=B:USR1@50  # warns the supervisor ahead of the drain
#SBATCH --ntasks-per-node=1  # one task starts its node's ranks
#SBATCH --output=/shared/runs/job/logs/job.log  # run directory
#SBATCH --open-mode=append  # a requeued job keeps its log

# Serves org/model on 2 nodes x 8 GPUs (tp 16, pp 1, dp 1).
# Written by hpcserve. It may be edited, and submitted with plain `sbatch`.
#
# Options of the engine and of the job, and where each comes from:
#   container = /images/a.sif  (command line)
#   container_runtime = apptainer  (command line)
#   mount = /scratch/my data:/data:ro  (command line)
#   fabric = ib  (command line)
#   require_fabric = True  (command line)
#   ib_hca = mlx5_0,mlx5_1  (command line)
#   model = org/model  (command line)
#   tp_size = 16  (command line)
# Left to the site's defaults: --account, --partition, --time, --cpus-per-task, --mem
# Before it is submitted by hand: mkdir -p -m 700 /shared/runs/job/logs
# tp 16 crosses nodes of 8 GPUs: each layer waits for the network; --tp 8 --pp 2 sends far less between nodes

# shellcheck disable=SC2016  # a $ in single quotes is part of a name
set -eo pipefail
# The supervisor takes these; until it is up they must not end the script.
trap '' USR1 USR2

export HPCSERVE_RUN_DIR=/shared/runs/job
export HPCSERVE_STATE_DIR=/home/user/.local/state/hpcserve
[[ -v NCCL_IB_HCA ]] || export NCCL_IB_HCA='=mlx5_0,mlx5_1'  # only the compute rails (--ib-hca)
[[ -v NCCL_NET ]] || export NCCL_NET=IB  # --require-fabric: no silent fallback to TCP sockets
[[ -v HPCSERVE_CACHE_DIR ]] || export HPCSERVE_CACHE_DIR=/tmp/hpcserve-cache-1000  # outside of $HOME, which images fill
[[ -v TRITON_CACHE_DIR ]] || export TRITON_CACHE_DIR=/tmp/hpcserve-cache-1000/triton  # outside of $HOME, which images fill
[[ -v TORCHINDUCTOR_CACHE_DIR ]] || export TORCHINDUCTOR_CACHE_DIR=/tmp/hpcserve-cache-1000/inductor  # outside of $HOME, which images fill
[[ -v APPTAINER_CACHEDIR ]] || export APPTAINER_CACHEDIR=/tmp/hpcserve-cache-1000/apptainer  # outside of $HOME, which images fill

# One task per node: it starts the node's ranks itself.
step=(
  srun
  --nodes=2
  --ntasks-per-node=1
  --kill-on-bad-exit=1
  --wait=60
  --mpi=none
  --export=ALL
  --open-mode=append
  --output="${HPCSERVE_RUN_DIR//%/%%}/logs/rank-%t.log"
  --cpu-bind=none
)
# apptainer starts the image on each node.
container=(
  apptainer exec --nv --no-home
  --bind '/scratch/my data:/data:ro'
  --bind /shared/runs/job:/shared/runs/job
  /images/a.sif
)
node=(
  hpcserve node --run-dir "$HPCSERVE_RUN_DIR"
  --fabric ib --require-fabric
  --ib-hca 'mlx5_0,mlx5_1'
  --drain 20 --preflight quick
  --
  --model org/model
  --host 0.0.0.0
  --port 0
  --drain-timeout 20.0
  --tp 16
)
supervisor=(
  /shared/venv/bin/python -m hpcserve job
  --run-dir "$HPCSERVE_RUN_DIR" --kind serve
  --continue-with none --max-restarts 3
  --drain 20 --ready-timeout 3600
  --rank-timeout 60
)
exec "${supervisor[@]}" -- "${step[@]}" "${container[@]}" "${node[@]}"
