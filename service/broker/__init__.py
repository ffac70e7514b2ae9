"""Who holds the jobs? Redis Streams, a laptop's private server like a cluster's, and the rules by which a job moves."""
