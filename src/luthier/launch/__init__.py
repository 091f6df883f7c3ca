"""Several processes, on this machine, on several, or as a Slurm job."""
