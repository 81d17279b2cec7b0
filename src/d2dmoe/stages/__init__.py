"""The paper's stages, each a function from saved inputs to saved outputs."""
