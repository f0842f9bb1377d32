"""S3Diff, the baseline that the restorer is derived from."""
