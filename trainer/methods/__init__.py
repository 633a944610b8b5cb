"""What a run trains: all weights of the U-Net, or the token embedding of a new word."""
