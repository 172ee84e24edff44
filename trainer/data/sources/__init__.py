"""What a task draws its batches from: a room of settings, sampler and loader for every kind of training."""
