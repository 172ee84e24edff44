"""The use: what commands call with trained weights (encode, score, predict, generate) or to show training (the demonstrations).

Nothing else in the trainer imports it.
"""
