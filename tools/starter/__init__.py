"""How the starter model is made: data -> autoencoder -> U-Net -> diffusers folder. Entry: tools/train_starter.py."""
