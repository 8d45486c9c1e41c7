"""What uses all three rooms: the demo, and whatever compares students with each other."""
