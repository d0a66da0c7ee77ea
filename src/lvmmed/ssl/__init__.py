"""Self-supervised methods, one file each, listed in `lvmmed.ssl.table`."""
