"""Raw media → clips → shards. Imports no torch: installs and starts light."""
