"""What runs a whole network in a worker process, an engine a class."""
