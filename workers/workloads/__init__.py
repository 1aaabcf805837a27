"""Model families that ship with the service: what they tune, how they read cells, how they are scored."""
