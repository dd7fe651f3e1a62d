"""What Lastcall costs, side by side with what a user would pick instead. Run it with `make bench`."""
