#!/usr/bin/env bash
# Write one HTML page about proxy and base runs in a Slurm job; the arguments are those of `doge-ds report`.
#
#     sbatch slurm/report.sh runs/proxy runs/base -o runs/report.html
#
# See docs/cluster.md; slurm/site.sh is yours to edit.
#SBATCH --job-name=doge-report
#SBATCH --ntasks=1
#SBATCH --output=slurm-%j-%x.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

if [[ -z ${SLURM_SUBMIT_DIR:-} ]]; then
    echo "error: slurm/report.sh: is a job script; sbatch [...] slurm/report.sh RUN [...] -o FILE" >&2
    exit 2
elif [[ ! -f $SLURM_SUBMIT_DIR/slurm/launch.sh ]]; then
    echo "error: $SLURM_SUBMIT_DIR: has no slurm/launch.sh; submit from the project's folder" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"
export DOGE_DS_SCRIPT=slurm/report.sh
# shellcheck source=slurm/launch.sh
. slurm/launch.sh

[[ $# -gt 0 ]] || fail slurm/report.sh "no runs are given" "sbatch slurm/report.sh RUN [...] -o FILE"
run_alone -m doge_ds.cli report "$@"
