"""The arithmetic under the operators: convolution, resizing, noise, JPEG."""
