"""Ways of changing a model: each takes a loaded model and returns it with the right weights trainable."""
