"""The engine: any task, step after step, saved and resumed exactly. It knows no model and no dataset.

Of the trainer it imports its own files and the protocol in `task.py`, nothing else.
"""
