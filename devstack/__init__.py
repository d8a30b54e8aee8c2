"""Everything a machine with Python alone needs to run the product: servers, demo, tests. Never in the image."""
