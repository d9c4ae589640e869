#!/usr/bin/env bash
# Measure models in a Slurm job, on one rank a task; the options are those of eval/run.py. Any number of ranks gives the
# same numbers: windows of text and tasks are spread over them. What is measured is not measured again by a job that was
# preempted, or lost a node, and starts again.
#
#     sbatch --gpus=4 --cpus-per-gpu=8 slurm/eval.sh --model runs/X --data STORE --suite doge6 --data_root DIR
#
# See docs/cluster.md; slurm/site.sh is yours to edit.
#SBATCH --job-name=doge-eval
#SBATCH --output=slurm-%j-%x.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

if [[ -z ${SLURM_SUBMIT_DIR:-} ]]; then
    echo "error: slurm/eval.sh: is a job script; sbatch [...] slurm/eval.sh --model MODEL --data STORE [options]" >&2
    exit 2
elif [[ ! -f $SLURM_SUBMIT_DIR/slurm/launch.sh ]]; then
    echo "error: $SLURM_SUBMIT_DIR: has no slurm/launch.sh; submit from the project's folder" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"
export DOGE_DS_SCRIPT=slurm/eval.sh
# shellcheck source=slurm/launch.sh
. slurm/launch.sh

[[ $# -gt 0 ]] || fail slurm/eval.sh "no options are given" "sbatch slurm/eval.sh --model MODEL --data STORE"
run_ranks eval/run.py "$@"
