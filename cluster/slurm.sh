#!/bin/bash
# sweeper on Slurm: Ray's head on the job's first node, a worker on each other one, and the sweep between them.
#
#   once   python3 -m venv ~/venv         in a home that all nodes see; what is installed is as on the other clusters:
#          ~/venv/bin/pip install -e . "ray[data,default,train,tune]==2.60.0"
#   start  sbatch --nodes=4 --gpus-per-node=1 cluster/slurm.sh search_spaces/smoke.yaml --store /shared/sweeper
#   watch  tail -f sweeper-JOB.log
#   stop   scancel JOB                    the same start goes on where it stopped
#
# It starts Ray on the job's nodes and nothing that outlives the job: what it costs is nodes x hours, as your site counts
# them, until the sweep ends or --time is over. Start it in the repository's folder, on a file system that all nodes
# share: results lie there. A job that is requeued, because it was preempted, lost its first node or came to the end of
# its time, goes on where it stopped; the loss of another node costs what ran there since its last checkpoint.
#SBATCH --job-name=sweeper
#SBATCH --output=sweeper-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
set -euo pipefail

export PATH="$HOME/venv/bin:$PATH" RAY_AUTH_MODE=token
(umask 077; ray get-auth-token --generate > /dev/null)   # ~/.ray/auth_token, if there is none; all nodes see it

# A node may hold several jobs: ports of this one's own, and a folder, because /tmp/ray belongs to whoever came first.
port=$((20000 + 2 * (SLURM_JOB_ID % 5000)))
address="$SLURMD_NODENAME:$port"
ray start --head --port="$port" --ray-client-server-port=$((port + 1)) --num-cpus="$SLURM_CPUS_PER_TASK" \
  --temp-dir="/tmp/ray-$SLURM_JOB_ID" --include-dashboard=false

# The batch script runs on the first node. `--block`: a step's processes end with its command.
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    --exclude="$SLURMD_NODENAME" --no-kill --kill-on-bad-exit=0 --wait=0 \
    ray start --block --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" &
fi

# Slurm says USR1 five minutes before the end of the job's time: the run keeps what is done, and the job queues again.
sweeper run "$@" --address "$address" &
run=$!
trap 'kill -TERM $run; wait $run || true; scontrol requeue "$SLURM_JOB_ID"; exit' USR1
wait $run
