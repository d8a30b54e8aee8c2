"""What people use today for the same job; each runs in an environment of its own (`benchmarks.pipeline`)."""
