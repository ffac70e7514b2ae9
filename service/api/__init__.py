"""The REST door: HTTP in, jobs out."""
