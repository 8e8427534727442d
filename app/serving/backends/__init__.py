"""Where a network runs: PyTorch, CUDA graphs, OpenVINO."""
