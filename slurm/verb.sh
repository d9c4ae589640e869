#!/usr/bin/env bash
# Any verb of doge-ds in a Slurm job of one task; the arguments are those of `doge-ds`.
#
#     sbatch slurm/verb.sh report runs/proxy runs/base -o runs/report.html
#     sbatch slurm/verb.sh mixture schedule runs/proxy --stages 4 --steps 40000 -o stages.json
#
# See docs/cluster.md; slurm/site.sh is yours to edit.
#SBATCH --job-name=doge-ds
#SBATCH --ntasks=1
#SBATCH --output=slurm-%j-%x.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

if [[ -z ${SLURM_SUBMIT_DIR:-} ]]; then
    echo "error: slurm/verb.sh: is a job script; sbatch [...] slurm/verb.sh VERB [options]" >&2
    exit 2
elif [[ ! -f $SLURM_SUBMIT_DIR/slurm/launch.sh ]]; then
    echo "error: $SLURM_SUBMIT_DIR: has no slurm/launch.sh; submit from the project's folder" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"
export DOGE_DS_SCRIPT=slurm/verb.sh
# shellcheck source=slurm/launch.sh
. slurm/launch.sh

[[ $# -gt 0 ]] || fail slurm/verb.sh "no verb is given" "sbatch slurm/verb.sh VERB [options]; doge-ds --help names them"
run_alone -m doge_ds.cli "$@"
