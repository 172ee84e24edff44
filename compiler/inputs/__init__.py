"""Names files and what is said about them; opens no media; ends in one input table."""
