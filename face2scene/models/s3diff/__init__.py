"""S3Diff, the baseline that the restorer is built on."""
