"""What each architecture of timm, and each model type of transformers, does here."""
