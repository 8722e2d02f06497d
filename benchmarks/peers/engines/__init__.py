"""The peers: each module runs an engine, in a worker process, and imports only that engine."""
