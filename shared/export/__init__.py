"""What an export says of itself: the API writes it, `orders-backup verify` proves the export by it."""
