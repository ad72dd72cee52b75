"""Networks, one per file, registered with BasicSR."""
