"""What two services must agree on, one concept a module."""
