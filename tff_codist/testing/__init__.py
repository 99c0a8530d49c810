"""Properties that every algorithm must have, and small things to test on."""
