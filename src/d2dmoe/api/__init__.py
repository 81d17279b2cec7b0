"""The library's calls on models in memory, whatever they are made of (see `d2dmoe`)."""
