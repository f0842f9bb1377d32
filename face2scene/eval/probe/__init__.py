"""The FaDeX probe: cosines, retrieval, linear probes."""
