"""Files made from files, without training: a LoRA out of a trained checkpoint, and a checkpoint
with LoRAs applied."""
