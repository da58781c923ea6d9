"""Networks of timm behind the contract, at any image size."""
