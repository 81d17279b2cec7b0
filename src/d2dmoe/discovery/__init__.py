"""Finding the feed-forward blocks of any Transformer by running it once, and adopting them.

Names never matter: an FFN is what computes `W2 act(W1 z)` or `W_down (act(W_gate z) ⊙ W_up z)`, by
its numbers. What cannot be proved stays as it was and is refused by name.
"""
