"""What a defense costs in time, and how many requests a second the engine answers."""
