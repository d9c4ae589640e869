#!/usr/bin/env bash
# Measure a model in a Slurm job, in one task; the options are those of eval/run.py.
#
#     sbatch --gpus=1 --cpus-per-task=8 slurm/eval.sh --model runs/X/hf --data STORE [--output FILE]
#
# See docs/cluster.md; slurm/site.sh is yours to edit.
#SBATCH --job-name=doge-eval
#SBATCH --output=slurm-%j-%x.out
#SBATCH --open-mode=append
set -euo pipefail

if [[ -z ${SLURM_SUBMIT_DIR:-} ]]; then
    echo "error: slurm/eval.sh: is a job script; sbatch [...] slurm/eval.sh --model MODEL --data STORE [options]" >&2
    exit 2
elif [[ ! -f $SLURM_SUBMIT_DIR/slurm/launch.sh ]]; then
    echo "error: $SLURM_SUBMIT_DIR: has no slurm/launch.sh; submit from the project's folder" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"
# shellcheck source=slurm/launch.sh
. slurm/launch.sh

[[ $# -gt 0 ]] || fail slurm/eval.sh "no options are given" "sbatch slurm/eval.sh --model MODEL --data STORE"
run_alone eval/run.py "$@"
