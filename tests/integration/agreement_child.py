"""``benchmarks/agreement_run.py`` for a process that does nothing else."""

import sys

import agreement_run


def main():
    agreement_run.main(sys.argv[1])
