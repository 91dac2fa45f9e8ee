#!/usr/bin/env bash
# One training on several nodes: `sbatch examples/slurm.sh DATASET OUT [options of brainjanus train]`.
# Slurm starts one process per GPU; each reads from its environment which one it is. Two minutes before the time is up,
# or when the job is preempted, Slurm sends SIGTERM: the run is saved and ends with status 75, and the job is queued again.
#SBATCH --job-name=brainjanus
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

dataset=${1:?the folder that brainjanus prepare wrote}
out=${2:?a folder for the run, which all nodes see}
shift 2

export MASTER_ADDR
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

srun --kill-on-bad-exit=1 brainjanus train "$dataset" --out "$out" --hardware.parallel fsdp "$@"
status=$?
if [ "$status" -eq 75 ]; then
    echo "saved; queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
