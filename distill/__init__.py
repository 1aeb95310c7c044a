"""From a diffusion teacher to a one-step student, by Adversarial Diffusion Distillation."""
