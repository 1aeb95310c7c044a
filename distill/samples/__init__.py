"""What a student trains on: encoded pictures and prompts, addressed by position."""
