"""Who owns which page of the KV cache."""
