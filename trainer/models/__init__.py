"""The models: each family in its own folder, with the official key names, so that published checkpoints load strictly."""
