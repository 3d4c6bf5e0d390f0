"""What the model on Triton and the service in front of it agree on."""
