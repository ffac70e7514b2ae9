"""Is anything lost or done twice when processes die, Redis goes away and the disk is full? `make chaos` tries it."""
