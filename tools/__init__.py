"""What sets the project up and runs it; never imported by the application's web processes."""
