"""What limbs are worth."""
