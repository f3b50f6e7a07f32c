"""What latents mean: windows of text on which they fire, explanations of them, and scores of these."""
