"""Where a stranger's bytes are decoded: in a process that can do nothing else."""
