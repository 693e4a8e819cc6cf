"""The names of a ladder's operating points; see `offramp.ladder`. Needs no torch."""

DROPS = {"keep-99.5": 0.005, "keep-99": 0.01, "keep-98": 0.02}
"""Points that keep a share of the full model's score -> the share that they may lose."""
SPEEDUPS = {"2x": 2.0, "4x": 4.0}
"""Points that are this many times cheaper than full depth."""
LADDER_NAMES = ("full", *DROPS, *SPEEDUPS)
