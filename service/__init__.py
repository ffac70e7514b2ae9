"""From request to result: settings, jobs, broker, blobs, media, pipeline, worker, REST and the command line."""
