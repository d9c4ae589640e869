# shellcheck shell=bash disable=SC2034
# What your cluster needs, in one place. slurm/launch.sh reads it inside the job, on the first node, before the ranks
# start; all that is exported here reaches every rank. Nothing has to be changed where the defaults will do.

# --- Account and partition. sbatch reads these from the shell that it is typed in, so uncomment what you need and type
# `. slurm/site.sh` there once; or leave them and write `sbatch --account=... --partition=... slurm/proxy.sh ...`.
# export SBATCH_ACCOUNT=my_project
# export SBATCH_PARTITION=gpu

# --- Modules: a compiler and CUDA, which DeepSpeed needs to compile its fused Adam at the first start.
# module load gcc/12 cuda/12.8

# --- The virtual environment, from the folder that jobs are submitted from; `make setup` makes .venv there.
VIRTUAL_ENVIRONMENT=.venv

# --- GPUs are found by DeepSpeed. Without any, or to leave them alone:
# export DS_ACCELERATOR=cpu

# --- Network. Where ranks of several nodes do not find each other, name the interface that connects the nodes (`ip -br
# address` lists them): NCCL connects GPUs, gloo CPUs. MASTER_ADDR is the step's first node unless it is set; set it
# where the names of nodes do not resolve, and MASTER_PORT where a firewall lets only some ports through.
# export NCCL_SOCKET_IFNAME=ib0
# export GLOO_SOCKET_IFNAME=eth0
# export MASTER_ADDR="$(hostname -I | cut -d ' ' -f 1)"
# export MASTER_PORT=29500

# --- Further options of srun, like (--cpu-bind=cores) or a container's.
SRUN_OPTIONS=()
