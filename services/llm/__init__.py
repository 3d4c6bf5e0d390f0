"""gRPC in front of the LLM on Triton."""
