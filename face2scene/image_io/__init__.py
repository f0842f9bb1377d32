"""Images in and out: photos of every format and depth with their metadata, RAW files, arrays."""
