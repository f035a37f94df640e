"""HiGHS greets on the process's standard output when its first solver is made; programs read ours there."""

from __future__ import annotations

import os
from functools import cache

import highspy

STDOUT = 1


@cache
def keep_highs_silent() -> None:
    """Make that first solver where nobody hears it."""
    try:
        saved = os.dup(STDOUT)
    except OSError:  # closed: nobody listens
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STDOUT)
        highspy.Highs()
    finally:
        os.dup2(saved, STDOUT)
        os.close(nowhere)
        os.close(saved)
