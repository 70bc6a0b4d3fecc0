"""The suite with workers that SLURM jobs start when there is work; in the folder of the clone:

DASK_CONFIG=skdcgn/assets/dask.yaml PYTHONPATH=$PWD python clusters/jobqueue.py --profile quick
"""

import subprocess
import sys
from pathlib import Path

from dask_jobqueue import SLURMCluster

if __name__ == "__main__":
    clone = Path(__file__).parents[1]
    options = ["--memory-limit", "0", "--no-dashboard", "--lifetime", "235m", "--lifetime-stagger", "4m"]
    cluster = SLURMCluster(
        cores=8,
        processes=8,
        memory="12GB",
        walltime="04:00:00",
        worker_extra_args=options,
        log_directory=str(clone / "mlruns" / "logs"),
    )
    cluster.adapt(minimum_jobs=1, maximum_jobs=8)  # a job that ends is followed by another
    command = [clone / "run_all.sh", "--scheduler", cluster.scheduler_address, *sys.argv[1:]]
    sys.exit(subprocess.run(command, check=False).returncode)
