"""How the service is watched: traces, log lines that name job and trace, and the figures of workers."""
