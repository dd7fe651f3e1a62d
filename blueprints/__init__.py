"""HTTP only, and thin: parse, call one use case, render."""
