"""writer: makes it durable. The only service that writes orders, events, cursors and the counters of runs."""
