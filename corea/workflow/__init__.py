"""From a profile to executed notebooks to the book, and what that will take."""
