"""The dynamic-k layer, fast: plain torch on the CPU, Triton on CUDA (paper section 3.4)."""
