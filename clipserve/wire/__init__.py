"""The HTTP bodies: from a request's bytes to items, from embeddings to a response's bytes."""
