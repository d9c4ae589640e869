# shellcheck shell=bash
# What the job scripts share. They read it from the folder that they were submitted from, since Slurm runs a copy of
# them from a folder of its own. Checks come first: a mistake is one line and status 2, before any rank starts.

fail() {
    echo "error: $1: $2; $3" >&2
    exit 2
}

# need_config SCRIPT [CONFIG ...]: the first argument must be a run configuration.
need_config() {
    local script=$1 config=${2:-}
    if [[ -z $config || $config == -* ]]; then
        fail "$script" "no run configuration is given" "sbatch $script CONFIG.json [options]"
    fi
    [[ -f $config ]] || fail "$config" "is no file in $PWD" "give the path of a run configuration, from that folder"
}

# run_ranks PROGRAM [ARGUMENTS ...]: one rank a task on all nodes of the job; the status is the program's. A job that
# was given GPUs but no number of tasks gets one task a GPU, with its share of the CPUs.
run_ranks() {
    local tasks=() gpus=${SLURM_GPUS_ON_NODE:-0} nodes=${SLURM_JOB_NUM_NODES:-1} cpus=${SLURM_CPUS_ON_NODE:-1}
    if [[ -z ${SLURM_NTASKS:-} && $gpus -gt 0 ]]; then
        tasks=(--ntasks="$((gpus * nodes))" --ntasks-per-node="$gpus")
        if [[ $cpus -ge $gpus ]]; then
            unset SLURM_CPUS_PER_GPU # srun takes one of the two
            SLURM_CPUS_PER_TASK=$((cpus / gpus))
        else
            # sbatch gave CPUs for one task on each node; srun refuses more tasks than CPUs unless they may share them.
            tasks+=(--overcommit)
            echo "warning: $gpus ranks share $cpus CPU(s) on each node; sbatch --cpus-per-gpu=N gives more" >&2
        fi
    fi
    start "${tasks[@]}" -- "$@"
}

# run_alone PROGRAM [ARGUMENTS ...]: the same with one task.
run_alone() {
    start --nodes=1 --ntasks=1 -- "$@"
}

# start [OPTIONS OF SRUN ...] -- PROGRAM [ARGUMENTS ...]
start() {
    local options=()
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    # Since Slurm 22.05 srun no longer takes this over from sbatch.
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    export PYTHONUNBUFFERED=1 # what a rank prints is in the log at once
    echo "$(date '+%F %T') job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}: $*"
    # When a rank fails, the others would wait for it: --kill-on-bad-exit ends them. Not `exec`: this shell stays, and
    # can forward a signal.
    srun --kill-on-bad-exit=1 "${options[@]}" "${SRUN_OPTIONS[@]}" "$VIRTUAL_ENVIRONMENT/bin/python" "$@"
}

set +u # what `module load` runs does not always stand -u
# shellcheck source=slurm/site.sh
. slurm/site.sh
set -u
[[ -x $VIRTUAL_ENVIRONMENT/bin/python ]] ||
    fail "$VIRTUAL_ENVIRONMENT" "is no virtual environment in $PWD" "run make setup, or name another in slurm/site.sh"
