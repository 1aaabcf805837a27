"""Workers: agents that pull trials from a store and train models."""
