"""What can be trained: each task joins a model, its data and its loss for the loop."""
