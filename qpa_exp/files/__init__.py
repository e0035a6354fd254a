"""What is written to disk, and how what somebody else wrote is read."""
