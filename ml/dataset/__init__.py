"""Records, labels and images that models learn from."""
