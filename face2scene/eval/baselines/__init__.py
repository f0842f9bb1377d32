"""Other methods: adapters, staging of their inputs, records of their predictions."""
