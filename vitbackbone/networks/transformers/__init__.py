"""Image and video encoders of transformers behind the contract."""
