"""poller: decides what to look at. It claims due work by leases, publishes, and never touches orders."""
