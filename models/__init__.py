"""What a denoiser is: catalogue, networks, weights, noise models, quality metrics and training recipes."""
