#!/bin/bash
# Runs one command in a container on this node, and leaves no container behind.
#
#   container_task.sh docker|podman-hpc IMAGE [--gpus] [--env NAME]... [--mount SOURCE:TARGET[:ro]]...
#     -- COMMAND...
#
# srun starts it once per node. Docker's daemon keeps containers outside of the job's cgroup, so
# SLURM cannot end them: this script does, and it touches the container of this job only.
set -uo pipefail

engine=$1 image=$2
shift 2
name="hpcserve-${SLURM_JOB_ID:-local}-${SLURM_NODEID:-0}"
options=(--rm --name "$name" --network host --ipc host --ulimit memlock=-1 --label "hpcserve.job=${SLURM_JOB_ID:-local}")
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --gpus)
      if [[ $engine == podman-hpc ]]; then
        options+=(--gpu)
      else
        # Only the GPUs that SLURM gave to this job.
        devices=${CUDA_VISIBLE_DEVICES:-all}
        [[ $devices == all ]] || devices="\"device=$devices\""
        options+=(--gpus "$devices")
      fi
      shift
      ;;
    --env)
      options+=(--env "$2")
      shift 2
      ;;
    --mount)
      options+=(--volume "$2")
      shift 2
      ;;
    *)
      echo "container_task.sh: unknown option $1" >&2
      exit 2
      ;;
  esac
done
shift # the --

# RDMA devices are given only where the node has them.
[[ -d /dev/infiniband ]] && options+=(--device /dev/infiniband)

# A name without a value passes the variable on as it is here.
while IFS= read -r variable; do
  case $variable in
    CUDA_VISIBLE_DEVICES) [[ $engine == docker ]] || options+=(--env "$variable") ;;
    SLURM* | HPCSERVE_* | NCCL_* | GLOO_* | TP_SOCKET_* | FI_* | HF_* | TRITON_* | TORCH* | OMP_*)
      options+=(--env "$variable")
      ;;
  esac
done < <(compgen -e)

if [[ $image == *.tar || $image == *.tar.gz || $image == *.tgz || $image == *.tar.zst ]]; then
  loaded=$("$engine" load --input "$image") || exit
  image=${loaded##*: }
fi

remove() { "$engine" rm --force "$name" >/dev/null 2>&1; }
remove # left by an earlier run of this same job, if it was killed
client='' stopped=''
pass_on() {
  stopped=yes
  [[ -z $client ]] || kill -TERM "$client" 2>/dev/null
}
trap pass_on TERM INT
trap remove EXIT
"$engine" run "${options[@]}" "$image" "$@" &
client=$!
[[ -z $stopped ]] || pass_on # the signal came before there was anybody to pass it on to
# A signal ends `wait` early, with a status above 128 that is not the client's: wait once more.
wait "$client"
status=$?
while ((status > 128)); do
  wait "$client" 2>/dev/null
  again=$?
  ((again == 127)) && break # it has been reported already: the status was its own
  ((again == status)) && ! kill -0 "$client" 2>/dev/null && break
  status=$again
done
exit "$status"
