"""api: reads, and controls by rows. A task is a row that the poller claims."""
