"""`make chaos`: the whole system under every fault we know, and afterwards nothing is lost, twice, or older."""
