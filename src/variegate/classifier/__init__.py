"""What learns the labels: networks, augmentation, the batches of an arm, and one training loop."""
