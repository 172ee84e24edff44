"""Attention and fused ops: one public function per op, with Triton, xformers and torch behind it. Imports no other floor."""
