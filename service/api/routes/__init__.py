"""The calls, a file for each kind of thing that is called."""
