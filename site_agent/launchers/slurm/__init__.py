"""Slurm as a launcher: what to run (``request``), how to read the answer (``answer``), and the shell around both."""
