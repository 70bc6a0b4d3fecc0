#!/usr/bin/env bash
# Workers as a SLURM job array, submitted in the folder of the clone:
#     sbatch --export=ALL,SCHEDULER=/shared/scheduler.json clusters/slurm.sh
#SBATCH --job-name=skdcgn
#SBATCH --array=1-32%8
#SBATCH --cpus-per-task=8
#SBATCH --mem=12G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --output=mlruns/slurm-%A_%a.log

# 32 jobs, eight at a time: one that ends makes room for the next. A worker takes about 1.5 GB. A minute before its time
# is up, a job asks its runs to stop: they write checkpoints, and other workers resume them.
exec clusters/worker.sh --scheduler-file "$SCHEDULER" --nworkers "$SLURM_CPUS_PER_TASK" --death-timeout 300
