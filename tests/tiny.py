"""The recipe of a tiny run on the built-in data: it takes a second."""

TINY = """\
iterations = 4
batch_size = 2
evaluate_every = 100
checkpoint_every = 2

[plugins]
dead_leaves = { crop = 16, num_images = 2, size = 32 }
bicubic = { scale = 4 }
encoder_decoder = { width = 4 }
patch_discriminator = { width = 4, num_layers = 1 }
wasserstein = {}
gradient_penalty = { weight = 10.0 }
pixel_loss = { weight = 1.0 }
"""
