"""What is decided from dot products alone: coefficients of K inputs, from their (K, K) Gram matrix."""
