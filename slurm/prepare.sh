#!/usr/bin/env bash
# Prepare a token store in Slurm jobs, without GPUs; the arguments are those of `doge-ds prepare`.
#
#     sbatch --cpus-per-task=16 slurm/prepare.sh RECIPE.json --output STORE                 one job for all of it
#     sbatch --array=0-63 --cpus-per-task=16 slurm/prepare.sh RECIPE.json --output STORE    64 jobs share the work; then
#     sbatch --dependency=afterok:JOB slurm/prepare.sh RECIPE.json --output STORE           one merges (JOB: the array's)
#
# A task of an array gets --shard TASK/TASKS; the array starts at 0. What is finished is never done again: submit the
# same array again after a failure. See docs/cluster.md; slurm/site.sh is yours to edit.
#SBATCH --job-name=doge-prepare
#SBATCH --ntasks=1
#SBATCH --output=slurm-%j-%x.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

if [[ -z ${SLURM_SUBMIT_DIR:-} ]]; then
    echo "error: slurm/prepare.sh: is a job script; sbatch [...] slurm/prepare.sh RECIPE.json --output STORE" >&2
    exit 2
elif [[ ! -f $SLURM_SUBMIT_DIR/slurm/launch.sh ]]; then
    echo "error: $SLURM_SUBMIT_DIR: has no slurm/launch.sh; submit from the project's folder" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"
export DOGE_DS_SCRIPT=slurm/prepare.sh
# shellcheck source=slurm/launch.sh
. slurm/launch.sh

[[ $# -gt 0 ]] || fail slurm/prepare.sh "no input is given" "sbatch slurm/prepare.sh RECIPE.json --output STORE"
shard=()
if [[ -n ${SLURM_ARRAY_TASK_ID:-} && " $* " != *" --shard"[\ =]* ]]; then
    [[ ${SLURM_ARRAY_TASK_COUNT:-0} == "$((SLURM_ARRAY_TASK_MAX + 1))" ]] ||
        fail "--array" "does not start at 0, or leaves numbers out" "use --array=0-N, or give --shard I/N yourself"
    shard=(--shard "$SLURM_ARRAY_TASK_ID/$((SLURM_ARRAY_TASK_MAX + 1))")
fi
run_alone -m doge_ds.cli prepare "$@" "${shard[@]}"
