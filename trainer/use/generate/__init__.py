"""From prompts to sounding videos."""
