"""The four services: poller, enricher, writer, api. None imports another."""
