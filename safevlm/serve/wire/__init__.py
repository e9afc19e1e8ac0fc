"""What clients send, as pydantic models: what is not named here is an error, and is never dropped in silence."""
