"""What is asked of every rendered manifest, and manifests that must fail it."""
