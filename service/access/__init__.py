"""Who calls, what may they do, and how much of it? Asked once, at every door, before anything else is done."""
