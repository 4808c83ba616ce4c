"""How good a run's synthetic images are: measures against held-out real images, and copies of training images."""
