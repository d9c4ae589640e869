#!/usr/bin/env bash
# Learn domain weights on the nodes of a Slurm job; the options are those of doge_ds/train_proxy.py.
#
#     sbatch --nodes=2 --gpus-per-node=4 --cpus-per-gpu=8 slurm/proxy.sh CONFIG [--set KEY=VALUE ...] [--output DIR]
#     sbatch --nodes=2 --ntasks-per-node=2 slurm/proxy.sh CONFIG        # ranks without GPUs
#
# Slurm asks for a save 2 minutes before the time limit and when it preempts the job, which then goes back into the queue
# and continues by itself (--no-requeue: it ends with 75, and continues when it is submitted again by the same command).
# See docs/cluster.md; slurm/site.sh is yours to edit.
#SBATCH --job-name=doge-proxy
#SBATCH --output=slurm-%j-%x.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

if [[ -z ${SLURM_SUBMIT_DIR:-} ]]; then
    echo "error: slurm/proxy.sh: is a job script; sbatch [...] slurm/proxy.sh CONFIG [options]" >&2
    exit 2
elif [[ ! -f $SLURM_SUBMIT_DIR/slurm/launch.sh ]]; then
    echo "error: $SLURM_SUBMIT_DIR: has no slurm/launch.sh; submit from the project's folder" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"
export DOGE_DS_SCRIPT=slurm/proxy.sh
# shellcheck source=slurm/launch.sh
. slurm/launch.sh

need_config slurm/proxy.sh "$@"
run_ranks doge_ds/train_proxy.py --config "$@"
