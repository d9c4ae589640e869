#!/usr/bin/env bash
# Submit the whole chain: prepare, proxy, two bases side by side, evaluation, report. --help says more.
#
#     slurm/pipeline.sh [options] PROXY.json BASE.json       on a login node, from the project's folder
#
# See docs/cluster.md; slurm/site.sh is yours to edit.
set -euo pipefail

if [[ ! -f slurm/launch.sh ]]; then
    echo "error: $PWD: has no slurm/launch.sh; start slurm/pipeline.sh from the project's folder" >&2
    exit 2
fi
set +u # what `module load` runs does not always stand -u
# shellcheck source=slurm/site.sh
. slurm/site.sh
set -u
if [[ ! -x $VIRTUAL_ENVIRONMENT/bin/python ]]; then
    echo "error: $VIRTUAL_ENVIRONMENT: is no virtual environment in $PWD; run make setup, or name another in" \
        "slurm/site.sh" >&2
    exit 2
fi
exec "$VIRTUAL_ENVIRONMENT/bin/python" -m doge_ds.pipeline "$@"
