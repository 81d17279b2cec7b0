"""Wall-clock time of the dynamic-k layer beside dense ones (claim C9; figures 5 and 11)."""
