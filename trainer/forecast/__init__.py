"""The forecast: what a run would take, said before it is started. It allocates nothing on a device and trains nothing.

It reads the engine's settings and rules, and models' shapes; it neither imports the loop nor what commands call.
"""
