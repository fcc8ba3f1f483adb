"""The command line: ``sprachbund``."""

import os

from console import (
    administration,
    auditing,
    courier,
    data,
    flower,
    home,
    keeping,
    looking,
    merging,
    operating,
    planning,
    simulating,
    site,
    site_jobs,
)
from console.app import app

COMMANDS = (  # importing them makes their commands
    *(home, keeping, site, site_jobs, operating, courier, data),
    *(planning, simulating, administration, flower, looking, merging, auditing),
)


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    # NumPy's BLAS would start a thread for every core, and we never call it
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # gRPC's own lines would stand between our JSON lines; GRPC_VERBOSITY=ERROR brings them back
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app(prog_name="sprachbund")


if __name__ == "__main__":
    main()
