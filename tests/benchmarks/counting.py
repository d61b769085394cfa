"""A child that counts."""

from __future__ import annotations

import sys

from benchmarks.child import Job, Result, answer_jobs


def count(job: Job) -> Result:
    return {"sum": sum(range(job["up to"] + 1))}


if __name__ == "__main__":
    sys.exit(answer_jobs(count))
