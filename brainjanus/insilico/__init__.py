"""In-silico experiments: what a trained model says that a region prefers, sees, contributes and means."""
