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

# start [OPTIONS OF SRUN ...] -- PROGRAM [ARGUMENTS ...]: runs it, and leaves the job with its status.
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
    say "on ${SLURM_JOB_NODELIST:-?}, restart ${SLURM_RESTART_COUNT:-0}: $*"
    # When a rank fails, the others would wait for it: --kill-on-bad-exit ends them. In the background, because a trap
    # waits for what runs in the foreground.
    srun --kill-on-bad-exit=1 "${options[@]}" "${SRUN_OPTIONS[@]}" "$VIRTUAL_ENVIRONMENT/bin/python" "$@" &
    ranks=$! started=$SECONDS
    [[ -z $asked_after ]] || ask_ranks & # the signal came before there were any
    local status
    while interrupted=no status=0; do
        wait "$ranks" || status=$?
        # A trap ends `wait` with the signal's number; the next `wait` has the status, also when the ranks are gone.
        [[ $interrupted == yes ]] || break
    done
    end_job "$status"
}

say() {
    echo "$(date '+%F %T') job $SLURM_JOB_ID $*"
}

# What Slurm sends before the time limit and before it preempts the job (USR1) goes to this shell alone. TERM has reached
# the ranks already where Slurm sent it, but not where somebody else did.
on_signal() {
    interrupted=yes
    if [[ -z $asked_after ]]; then
        asked_after=$SECONDS
        say "got SIG$1 and asks the ranks to save and end"
        [[ -z $ranks ]] || ask_ranks &
    fi
}

# Always USR1: srun answers TERM by killing the ranks. At first again and again: it swallows what comes before they run.
# Later once: ranks that have saved, and are about to end, should be left in peace.
ask_ranks() {
    while kill -USR1 "$ranks" 2>/dev/null && [[ $((SECONDS - started)) -lt 15 ]]; do
        sleep 3
    done
}

# end_job STATUS: back into the queue, if that is what the ranks' end is about.
end_job() {
    local status=$1 id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} job
    id=${id:-$SLURM_JOB_ID}
    [[ $status != 0 ]] || exit 0
    job=" $(scontrol --oneliner show job "$id" || true) "
    # A job that Slurm is ending (scancel, time limit, preempted without a grace time) is COMPLETING; if it shall run
    # again, Slurm sees to it. To requeue a cancelled one would bring it back.
    if [[ $job == *" JobState=RUNNING "* ]] && goes_on "$status" "$job"; then
        if [[ $job == *" Requeue=0 "* ]]; then
            say "is not finished and was submitted with --no-requeue: submit it again"
        else
            say "is not finished (status $status) and goes back into the queue"
            trap '' TERM USR1 # Slurm ends this shell now
            scontrol requeue "$id" || say "could not be requeued: submit it again"
        fi
    fi
    exit "$status"
}

# goes_on STATUS JOB: whether the same job, started again, continues.
goes_on() {
    [[ $1 != 75 ]] || return 0 # the ranks saved
    # Slurm wants the nodes for another job. Programs that save as they go simply end of its TERM.
    [[ $2 == *" PreemptTime="* && $2 != *" PreemptTime=None "* ]] && return 0
    # The signal ended ranks that could not save: they were starting or finishing. Where it came in the first minute, the
    # time limit is too short for anything, and the job would restart for ever.
    [[ -n $asked_after && $asked_after -ge 60 && $1 -gt 128 ]]
}

ranks='' started='' asked_after=''
trap 'on_signal USR1' USR1
trap 'on_signal TERM' TERM
set +u # what `module load` runs does not always stand -u
# shellcheck source=slurm/site.sh
. slurm/site.sh
set -u
[[ -x $VIRTUAL_ENVIRONMENT/bin/python ]] ||
    fail "$VIRTUAL_ENVIRONMENT" "is no virtual environment in $PWD" "run make setup, or name another in slurm/site.sh"
