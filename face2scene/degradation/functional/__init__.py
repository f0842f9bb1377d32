"""The arithmetic of the operators: convolution, resizing, noise, JPEG."""
