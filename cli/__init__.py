"""`orders-backup`: the command line."""
