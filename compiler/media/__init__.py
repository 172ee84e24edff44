"""One source becomes one clip: pure in the source's bytes and the recipe; knows no dataset, store or engine."""
