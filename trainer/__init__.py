"""Datasets → batches → models → steps → checkpoints. Needs the `train` extra.

A folder per concern, each with its rule in its `__init__.py`; `tests/trainer/test_rooms.py` reads the imports and holds them.
`engine` runs any task and knows no model and no dataset, `forecast` allocates nothing, `data` makes batches, `transforms` change
a clip, `models` and `objectives` compute, `tasks` join a model, its data and its loss, `use` is what commands call. `task.py`,
between them all, is what the engine asks of a task.
"""
