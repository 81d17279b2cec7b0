"""Experts in host memory, of which the device holds some (AdapMoE, arXiv 2408.10284, section 4.3).

`recording` sees which experts tokens use, `misses` counts what caches of all sizes would miss,
`sizes` divides the memory among the layers, `layer` runs a layer by its cache, and `offload` is the
call that does all of it.
"""
